"""Losses and their gradients: by hand, by finite differences, in parts and whole."""

import math

import pytest
import torch
from torch.func import grad

from tokrl.losses import (
    aggregate,
    kl_estimate,
    policy_loss,
    select_by_entropy,
    token_weights,
    value_loss,
)
from tokrl.losses.aggregate import MODES
from tokrl.losses.policy import KINDS
from tokrl.masking import length_mask

F64 = torch.float64
LENGTHS = (4, 1, 6, 3, 0, 5)


def close(got, expected, atol=1e-12):
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


def batch(seed=2, lengths=LENGTHS, move=0.3):
    """Log-probs that carry gradients, those before a step, advantages, a mask."""
    generator = torch.Generator().manual_seed(seed)
    shape = 3, len(lengths), max(lengths)
    draws = torch.randn(shape, generator=generator, dtype=F64)
    old = -draws[0].exp()
    logprobs = (old + move * draws[1]).requires_grad_()
    return logprobs, old, draws[2], length_mask(torch.tensor(lengths), max(lengths))


def options(kind, mode="token_mean"):
    """Arguments of a loss of this kind whose clip binds on some of a batch's tokens."""
    narrow = 0.05 if kind.startswith("gspo") else 0.2
    high = 1.3 if kind == "cispo" else narrow
    found = {"kind": kind, "clip_low": narrow, "clip_high": high, "aggregate": mode}
    return {**found, "max_length": 8} if mode == "constant" else found


def gradient(logprobs, *arguments, **named):
    loss, _ = policy_loss(logprobs, *arguments, **named)
    return torch.autograd.grad(loss, logprobs)[0]


# Weights


def test_weights_by_hand():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    assert token_weights(mask).tolist() == [[0.25] * 3, [0.25, 0, 0], [0] * 3]
    constant = token_weights(mask, "constant", 8)
    assert torch.equal(constant, mask / 24)
    third = token_weights(mask, "sequence_mean")
    close(third, torch.tensor([[1 / 9] * 3, [1 / 3, 0, 0], [0] * 3]), atol=1e-7)
    assert not token_weights(0 * mask).any()
    with pytest.raises(ValueError, match="mode='mean'"):
        token_weights(mask, "mean")
    for wrong in (None, 0, -1):
        with pytest.raises(ValueError, match=f"max_length={wrong}"):
            token_weights(mask, "constant", wrong)


def test_aggregate_is_the_mean_that_it_is_named_after():
    terms, _, _, mask = batch()
    rows = [row[:n].sum() for row, n in zip(terms, LENGTHS, strict=True)]
    close(aggregate(terms, mask), sum(rows) / sum(LENGTHS))
    means = [row / max(n, 1) for row, n in zip(rows, LENGTHS, strict=True)]
    close(aggregate(terms, mask, "sequence_mean"), sum(means) / len(LENGTHS))
    constant = aggregate(terms, mask, "constant", 9)
    close(constant, sum(rows) / (9 * len(LENGTHS)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_parts_of_a_batch_add_up_to_the_whole(kind, mode):
    named = options(kind, mode)
    logprobs, *rest, mask = batch()
    weights = token_weights(mask.to(F64), mode, named.get("max_length"))
    whole, metrics = policy_loss(logprobs, *rest, mask, **named)
    assert metrics["clip_frac"] > 0 or kind == "reinforce"
    parts = [
        policy_loss(*(x[rows] for x in (logprobs, *rest, mask)),
                    weights=weights[rows], **named)[0]
        for rows in (slice(0, 2), slice(2, 3), slice(3, 6))
    ]  # fmt: skip
    close(sum(parts), whole)
    total, exact = (torch.autograd.grad(x, logprobs)[0] for x in (sum(parts), whole))
    close(total, exact)
    assert exact.any()


def test_means_of_parts_would_not_add_up_to_the_whole():
    logprobs, *rest, mask = batch()
    exact = gradient(logprobs, *rest, mask)
    halves = (slice(0, 3), slice(3, 6))
    parts = [policy_loss(*(x[h] for x in (logprobs, *rest, mask)))[0] for h in halves]
    total = torch.autograd.grad(sum(parts) / 2, logprobs)[0]
    assert (total - exact).norm() > 0.05 * exact.norm()


def test_parts_of_a_value_loss_add_up_to_the_whole():
    values, old, returns, mask = batch()
    weights = token_weights(mask.to(F64))
    whole, _ = value_loss(values, old, returns, mask, 0.2)
    parts = [
        value_loss(*(x[i : i + 1] for x in (values, old, returns, mask)), 0.2,
                   weights[i : i + 1])[0]
        for i in range(len(mask))
    ]  # fmt: skip
    close(sum(parts), whole)


# The clip

TABLE = [
    # sign of A, ratio, what the objective is worth, whether the gradient flows
    (1, 0.5, 0.5, True),
    (1, 1.1, 1.1, True),
    (1, 1.5, 1.28, False),
    (-1, 0.5, -0.8, False),
    (-1, 1.1, -1.1, True),
    (-1, 1.5, -1.5, True),
]


@pytest.mark.parametrize("kind", ["ppo", "gspo", "gspo_token"])
@pytest.mark.parametrize(("sign", "ratio", "worth", "flows"), TABLE)
def test_the_clip_in_six_cases(kind, sign, ratio, worth, flows):
    """The minimum, for either sign of A: good news is capped, bad news is not."""
    logprobs = torch.tensor([[math.log(ratio) - 1]], dtype=F64, requires_grad=True)
    old, one = torch.full((1, 1), -1.0, dtype=F64), torch.ones(1, 1)
    loss, metrics = policy_loss(logprobs, old, sign * one, one, 0.2, 0.28, kind)
    assert loss.item() == pytest.approx(-worth)
    slope = torch.autograd.grad(loss, logprobs)[0].item()
    assert slope == pytest.approx(-sign * ratio if flows else 0.0)
    assert metrics["clip_frac"] == (not flows)
    assert metrics["clip_frac_high" if sign > 0 else "clip_frac_low"] == (not flows)
    assert metrics["ratio"] == pytest.approx(ratio)


@pytest.mark.parametrize("ratio", [0.8, 1.0, 1.25])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_whole_gradient_flows_at_1_and_on_the_edge(ratio, sign):
    """Half of it would, were the two sides of the minimum cut at a tie."""
    logprobs = torch.tensor([[math.log(ratio)]], dtype=F64, requires_grad=True)
    zero, one = torch.zeros(1, 1, dtype=F64), torch.ones(1, 1)
    slope = gradient(logprobs, zero, sign * one, one, 0.2 + 1e-12, 0.25 + 1e-12)
    assert slope.item() == pytest.approx(-sign * ratio)


def test_cispo_caps_the_weight_and_drops_no_token():
    ratios = torch.tensor([[0.1, 1.0, 2.0, 50.0]], dtype=F64)
    old = torch.full((1, 4), -5.0, dtype=F64)
    logprobs = (old + ratios.log()).requires_grad_()
    advantages = torch.tensor([[1.0, -1.0, -1.0, 3.0]], dtype=F64)
    mask = torch.ones(1, 4)
    loss, metrics = policy_loss(
        logprobs, old, advantages, mask, clip_high=1.5, kind="cispo"
    )
    weighted = torch.tensor([[0.1, 1.0, 1.5, 1.5]], dtype=F64) * advantages
    close(loss.detach(), -(weighted * logprobs.detach()).mean())
    close(torch.autograd.grad(loss, logprobs)[0], -weighted / 4)
    assert metrics["clip_frac"] == metrics["clip_frac_high"] == 0.5
    assert metrics["clip_frac_low"] == 0


def test_clip_frac_is_a_share_of_the_tokens_that_count():
    ratios = torch.tensor([[0.5, 1.5, 1.0], [1.5, 9.0, 9.0]], dtype=F64)
    advantages = torch.tensor([[-1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    zero = torch.zeros(2, 3, dtype=F64)
    _, metrics = policy_loss(ratios.log(), zero, advantages, mask)
    assert metrics["clip_frac_low"] == 0.25
    assert metrics["clip_frac_high"] == 0.5
    assert metrics["clip_frac"] == 0.75
    assert metrics["ratio"] == pytest.approx(4.5 / 4)
    drift = sum(r - 1 - math.log(r) for r in (0.5, 1.5, 1.0, 1.5)) / 4
    assert metrics["approx_kl"] == pytest.approx(drift)
    assert all(type(value) is float for value in metrics.values())


# Kinds


@pytest.mark.parametrize("kind", ["reinforce", "ppo", "gspo"])
def test_the_gradient_is_that_of_finite_differences(kind):
    logprobs, *rest = batch()
    named = options(kind)
    assert torch.autograd.gradcheck(
        lambda x: policy_loss(x, *rest, **named)[0], (logprobs,)
    )


@pytest.mark.parametrize("kind", ["ppo", "gspo", "gspo_token", "cispo"])
def test_on_the_policys_own_tokens_every_kind_has_the_gradient_of_reinforce(kind):
    _, old, advantages, mask = batch()
    if kind == "gspo":  # which knows one advantage per row only
        advantages = advantages[:, :1].expand_as(old)
    logprobs = old.clone().requires_grad_()
    named = {"aggregate": "sequence_mean"}
    got = gradient(logprobs, old, advantages, mask, **options(kind, "sequence_mean"))
    close(got, gradient(logprobs, old, advantages, mask, kind="reinforce", **named))
    _, metrics = policy_loss(logprobs, old, advantages, mask, **options(kind))
    assert metrics["ratio"] == 1
    assert metrics["clip_frac"] == metrics["approx_kl"] == 0


def test_gspo_moves_a_row_by_the_geometric_mean_of_its_ratios():
    """By the definition: a loss per row, from s_i = (product of ratios)^(1/len)."""
    logprobs, old, advantages, mask = batch()
    advantages = advantages[:, :1]
    rows = []
    for i, length in enumerate(LENGTHS):
        if length:
            s = (logprobs - old)[i, :length].exp().prod() ** (1 / length)
            a = advantages[i, 0]
            rows.append(-torch.minimum(s * a, s.clamp(0.95, 1.05) * a))
    exact = sum(rows) / len(LENGTHS)
    loss, metrics = policy_loss(
        logprobs, old, advantages.expand_as(old), mask,
        **options("gspo", "sequence_mean"),
    )  # fmt: skip
    close(loss, exact)
    assert 0 < metrics["clip_frac"] < 1
    got, expected = (torch.autograd.grad(x, logprobs)[0] for x in (loss, exact))
    close(got, expected)


@pytest.mark.parametrize("mode", MODES)
def test_gspo_token_is_gspo_where_a_row_has_one_advantage(mode):
    logprobs, old, advantages, mask = batch(3)
    arguments = old, advantages[:, :1].expand_as(old), mask
    (one, two), (slope_one, slope_two) = zip(
        *(
            (policy_loss(logprobs, *arguments, **options(kind, mode))[0],
             gradient(logprobs, *arguments, **options(kind, mode)))
            for kind in ("gspo", "gspo_token")
        ),
        strict=True,
    )  # fmt: skip
    close(one, two)
    close(slope_one, slope_two)
    assert slope_one.any()


def test_gspo_token_credits_each_token_with_its_own_advantage():
    logprobs, old, advantages, mask = batch(4, move=0.01)
    named = {"aggregate": "sequence_mean"}
    token = gradient(logprobs, old, advantages, mask, kind="gspo_token", **named)
    assert torch.equal(token.sign(), -advantages.sign() * mask)
    spread = gradient(logprobs, old, advantages, mask, kind="gspo", **named)
    assert (spread[0, :4] == spread[0, 0]).all(), "gspo spreads the row's mean"
    close(spread.sum(-1), token.sum(-1))


@pytest.mark.parametrize("kind", KINDS)
def test_no_advantage_no_gradient(kind):
    logprobs, old, advantages, mask = batch()
    assert not gradient(logprobs, old, 0 * advantages, mask, **options(kind)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_token_learns_and_what_follows_it_does_not(kind):
    """A policy whose end token is masked out is never taught to stop."""
    logprobs, old, advantages, mask = batch(move=0.0)
    slopes = gradient(logprobs, old, advantages.abs() + 0.1, mask, **options(kind))
    ends = [slopes[i, n - 1] for i, n in enumerate(LENGTHS) if n]
    assert all(slope < 0 for slope in ends), "descent makes it likelier"
    assert not slopes[mask == 0].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_garbage_under_the_mask_does_not_leak(kind, garbage):
    logprobs, old, advantages, mask = batch()
    named = options(kind)
    loss, metrics = policy_loss(logprobs, old, advantages, mask, **named)
    exact = gradient(logprobs, old, advantages, mask, **named)
    dirty = [x.detach().masked_fill(mask == 0, garbage)
             for x in (logprobs, old, advantages)]  # fmt: skip
    dirty[0].requires_grad_()
    got, got_metrics = policy_loss(*dirty, mask, **named)
    close(got, loss)
    assert metrics == got_metrics
    close(gradient(*dirty, mask, **named), exact)
    values = [x.detach().masked_fill(mask == 0, garbage) for x in dirty]
    values[0].requires_grad_()
    loss, metrics = value_loss(*values, mask, clip=0.1)
    clean = value_loss(logprobs, old, advantages, mask, clip=0.1)
    close(loss, clean[0])
    assert metrics == clean[1]
    assert torch.autograd.grad(loss, values[0])[0].isfinite().all()


def test_inputs_are_left_as_they_were():
    logprobs, *rest = (x.detach().clone() for x in batch())
    entropy = logprobs.exp()
    inputs = [logprobs, *rest, entropy]
    before = [x.clone() for x in inputs]
    for kind in KINDS:
        policy_loss(logprobs, *rest, **options(kind))
    value_loss(logprobs, *rest, clip=0.1)
    select_by_entropy(entropy, rest[-1], 0.5)
    kl_estimate(logprobs, rest[0], "k3")
    for old, new in zip(before, inputs, strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"kind": "trpo"}, "kind='trpo'"),
        ({"clip_low": -0.1}, "clip_low=-0.1"),
        ({"clip_high": -1}, "clip_high=-1"),
        ({"kind": "cispo"}, "clip_high=0.2: with kind 'cispo'"),
        ({"aggregate": "mean"}, "mode='mean'"),
        ({"aggregate": "constant"}, "max_length=None"),
    ],
)
def test_a_wrong_argument_is_named(named, message):
    with pytest.raises(ValueError, match=message):
        policy_loss(*batch(), **named)


def test_advantages_of_rows_are_not_read_as_those_of_columns():
    logprobs, old, advantages, mask = batch(lengths=(3, 3, 3))
    with pytest.raises(ValueError, match=r"advantages has shape \(3,\)"):
        policy_loss(logprobs, old, advantages[:, 0], mask)
    with pytest.raises(ValueError, match=r"returns has shape \(3, 1\)"):
        value_loss(logprobs, old, advantages[:, :1], mask)
    with pytest.raises(ValueError, match=r"weights has shape \(3,\)"):
        policy_loss(logprobs, old, advantages, mask, weights=torch.ones(3))
    with pytest.raises(ValueError, match=r"matrix has shape \(3,\)"):
        aggregate(advantages[:, 0], mask)
    with pytest.raises(ValueError, match=r"ref_logprobs \(3,\)"):
        kl_estimate(logprobs, old[:, 0])


# Tokens of high entropy


def test_the_tokens_of_highest_entropy_are_kept():
    entropy = torch.tensor([[0.1, 2.0, 0.3], [1.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert select_by_entropy(entropy, mask, 0.2).tolist() == [[0, 1, 0], [0, 0, 0]]
    assert select_by_entropy(entropy, mask, 0.5).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert torch.equal(select_by_entropy(entropy, mask, 1.0), mask)
    assert not select_by_entropy(entropy, 0 * mask, 0.5).any()
    assert torch.equal(select_by_entropy(0 * entropy, mask, 0.2), mask), "all tie"
    for share in (0, -0.1, 1.5):
        with pytest.raises(ValueError, match=f"share={share}"):
            select_by_entropy(entropy, mask, share)


def test_about_the_share_asked_for_is_kept():
    entropy = torch.rand(50, 20, generator=torch.Generator().manual_seed(0))
    mask = length_mask(torch.randint(1, 21, (50,)), 20)
    for share in (0.05, 0.2, 0.8):
        kept = select_by_entropy(entropy, mask, share)
        assert kept.sum().item() == pytest.approx(share * mask.sum().item(), abs=1)
        assert entropy[kept == 1].min() >= entropy[(mask == 1) & (kept == 0)].max()


# Values


def test_value_loss_by_hand():
    values = torch.tensor([[1.0, 2.0, 0.0, 7.0]], dtype=F64, requires_grad=True)
    old = torch.tensor([[0.0, 2.5, 1.0, 0.0]], dtype=F64)
    returns = torch.tensor([[3.0, 1.0, 4.0, 0.0]], dtype=F64)
    mask = torch.tensor([[1, 1, 1, 0]])
    loss, metrics = value_loss(values, old, returns, mask)
    assert loss.item() == pytest.approx(0.5 * (4 + 1 + 16) / 3)
    assert metrics == {"clip_frac": 0}
    slope = torch.autograd.grad(loss, values)[0]
    close(slope, torch.tensor([[-2.0, 1.0, -4.0, 0.0]], dtype=F64) / 3)
    # Within 0.8 of the old values: 0.8 instead of 1, 2 as it is, 0.2 instead of 0.
    # The first moved towards its return and is cut off; the third moved away.
    loss, metrics = value_loss(values, old, returns, mask, clip=0.8)
    assert loss.item() == pytest.approx(0.5 * (2.2**2 + 1 + 16) / 3)
    assert metrics["clip_frac"] == pytest.approx(1 / 3)
    slope = torch.autograd.grad(loss, values)[0]
    close(slope, torch.tensor([[0.0, 1.0, -4.0, 0.0]], dtype=F64) / 3)
    with pytest.raises(ValueError, match="clip=0"):
        value_loss(values, old, returns, mask, clip=0)


def test_values_that_moved_less_than_the_clip_are_not_clipped():
    """Not even by rounding."""
    values, noise, returns, mask = batch()
    old = 10 * noise
    loss, metrics = value_loss(values, old, returns, mask, clip=1000)
    assert metrics["clip_frac"] == 0
    plain, _ = value_loss(values, old, returns, mask)
    assert loss == plain
    got, expected = (torch.autograd.grad(x, values)[0] for x in (loss, plain))
    close(got, expected)


def test_no_gradient_flows_to_what_a_loss_is_measured_against():
    values, old, returns, mask = batch()
    others = [x.clone().requires_grad_() for x in (old, returns)]
    value_loss(values, *others, mask, clip=0.1)[0].backward()
    policy_loss(values, *others, mask)[0].backward()
    assert others[0].grad is None
    assert others[1].grad is None


# KL to a reference


def two_distributions():
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5, 2.0], dtype=F64)
    return logits, torch.tensor([2, -1, 0, 0, -1.5], dtype=F64).log_softmax(-1)


def divergence(logp, logq):
    return (logp.exp() * (logp - logq)).sum()


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_kl_estimates_are_unbiased_and_the_right_way_round(kind):
    logits, ref = two_distributions()
    logp = logits.log_softmax(-1)
    exact, reverse = divergence(logp, ref), divergence(ref, logp)
    assert exact - reverse > 0.5, "so that the direction is seen"
    close((logp.exp() * kl_estimate(logp, ref, kind)).sum(), exact)
    inverted = (logp.exp() * kl_estimate(ref, logp, kind)).sum()
    # -KL, or the chi-squared distance sum p^2/q - 1 less the KL.
    chi = (2 * logp - ref).exp().sum() - 1
    close(inverted, -exact if kind == "k1" else chi - exact)


def test_kl_estimates_of_a_row_add_up_to_its_log_ratio():
    logprobs, ref, _, mask = batch()
    total = (kl_estimate(logprobs, ref) * mask).sum(-1)
    close(total, (logprobs * mask).sum(-1) - (ref * mask).sum(-1))


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_the_gradient_of_a_kl_estimate_in_the_loss(kind):
    """Expected over one token: nothing, KL(pi, pi_ref), KL(pi_ref, pi)."""
    logits, ref = two_distributions()
    probs = logits.softmax(-1)

    def in_the_loss(x):
        return (probs * kl_estimate(x.log_softmax(-1), ref, kind)).sum()

    exact = {
        "k1": torch.zeros_like,
        "k2": grad(lambda x: divergence(x.log_softmax(-1), ref)),
        "k3": grad(lambda x: divergence(ref, x.log_softmax(-1))),
    }[kind](logits)
    close(grad(in_the_loss)(logits), exact)
    assert exact.any() == (kind != "k1")
