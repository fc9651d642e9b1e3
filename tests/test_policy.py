"""From rewards to better policies: every estimator against an exact answer."""

import itertools

import pytest
import torch

from tokrl import models
from tokrl.advantages import (
    leave_one_out,
    leave_one_out_advantages,
    returns_to_go,
)
from tokrl.batches import Rollout
from tokrl.losses import aggregate, kl_estimate, policy_loss
from tokrl.rewards import ValidityReward, token_reward_matrix
from tokrl.rollout import collect
from tokrl.runs import reproducible
from tokrl.scoring import completion_logits, token_logprobs
from tokrl.tokenizers import WordTokenizer
from tokrl.training import Learner, PolicyConfig, train_policy
from tokrl.training.experience import prepare, token_advantages
from tokrl.world import END, World


@pytest.fixture(autouse=True)
def float64():
    yield reproducible(0)
    torch.set_default_dtype(torch.float32)


def matrix(rows):
    return torch.tensor(rows)


# Advantages


def test_returns_to_go_by_hand():
    rewards = matrix([[1.0, 2.0, 4.0, 99.0], [0.0, 0.0, -1.0, 0.5]])
    mask = matrix([[1, 1, 1, 0], [1, 1, 1, 1]])
    expected = matrix([[7.0, 6.0, 4.0, 0.0], [-0.5, -0.5, -0.5, 0.5]])
    assert torch.equal(returns_to_go(rewards, mask), expected)
    expected = matrix([[3.0, 4.0, 4.0, 0.0], [-0.1875, -0.375, -0.75, 0.5]])
    assert torch.equal(returns_to_go(rewards, mask, 0.5), expected)
    expected = torch.where(mask.bool(), rewards, 0.0)
    assert torch.equal(returns_to_go(rewards, mask, 0.0), expected)


def test_leave_one_out_by_hand():
    values = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
    expected = torch.tensor([4.0, 3.5, 1.5, 5.0, 5.0, 5.0])
    assert torch.equal(leave_one_out(values, 3), expected)
    mask = torch.ones(6, 2)
    mask[2, 1] = 0
    got = leave_one_out_advantages(values, 3, mask)
    assert got[:, 0].tolist() == [-3.0, -1.5, 4.5, 0.0, 0.0, 0.0]
    assert got[2].tolist() == [4.5, 0.0]
    for size in (1, 4):
        with pytest.raises(ValueError, match=f"group_size={size}"):
            leave_one_out(values, size)


# Losses


def test_aggregate_by_hand():
    terms = matrix([[1.0, 2.0, 3.0], [10.0, torch.nan, torch.inf]])
    mask = matrix([[1, 1, 1], [1, 0, 0]])
    assert aggregate(terms, mask, "token_mean") == 4
    assert aggregate(terms, mask, "sequence_mean") == 6
    assert aggregate(terms, mask, "constant", 8) == 1
    with pytest.raises(ValueError, match="median"):
        aggregate(terms, mask, "median")
    with pytest.raises(ValueError, match="max_length"):
        aggregate(terms, mask, "constant")


def test_kl_estimates_have_the_right_mean(float64):
    logp = torch.randn(6, generator=float64).log_softmax(-1)
    logq = torch.randn(6, generator=float64).log_softmax(-1)
    p, q = logp.exp(), logq.exp()
    exact = (p * (logp - logq)).sum()
    assert (p * kl_estimate(logp, logq, "k1")).sum() == pytest.approx(float(exact))
    assert (p * kl_estimate(logp, logq, "k3")).sum() == pytest.approx(float(exact))
    k2 = (p * (logp - logq) ** 2).sum() / 2
    assert (p * kl_estimate(logp, logq, "k2")).sum() == pytest.approx(float(k2))
    assert (kl_estimate(logp, logq, "k3") >= 0).all()
    assert p.sum() == pytest.approx(float(q.sum()))
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(logp, logq, "k4")


def test_reinforce_loss_and_its_gradient_by_hand():
    logprobs = matrix([[-1.0, -2.0], [-3.0, -4.0]]).requires_grad_()
    advantages = matrix([[1.0, -1.0], [0.5, 7.0]]).requires_grad_()
    mask = matrix([[1, 1], [1, 0]])
    loss, metrics = policy_loss(
        logprobs,
        logprobs.detach(),
        advantages,
        mask,
        kind="reinforce",
        aggregate="constant",
        max_length=2,
    )
    assert loss.item() == pytest.approx((1.0 - 2.0 + 1.5) / 4)
    loss.backward()
    assert logprobs.grad.tolist() == [[-0.25, 0.25], [-0.125, 0.0]]
    assert advantages.grad is None
    assert metrics["approx_kl"] == 0
    with pytest.raises(ValueError, match="'trpo'"):
        policy_loss(logprobs, logprobs, advantages, mask, kind="trpo")


# The gradient, by enumeration of every completion of a tiny model

EOS_ID, LENGTH = 2, 3


def everything():
    """All completions of up to 3 tokens from 4, as ids and mask."""
    rows = set()
    for ids in itertools.product(range(4), repeat=LENGTH):
        end = ids.index(EOS_ID) + 1 if EOS_ID in ids else LENGTH
        rows.add(ids[:end])
    rows = sorted(rows)
    ids = torch.tensor([[*row, *[0] * (LENGTH - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (LENGTH - len(r)) for r in rows])
    return ids, mask


@pytest.mark.parametrize("advantage", ["returns", "leave_one_out", "rloo"])
def test_the_expected_update_is_the_exact_policy_gradient(float64, advantage):
    shape = {"width": 8, "layers": 1, "heads": 2, "max_length": 8}
    model = models.build("transformer", 4, float64, **shape)
    ids, mask = everything()
    count = len(ids)
    # A token's reward depends on the tokens up to it, never on later ones.
    table = torch.randn(4, 4, 4, generator=float64)
    by_prefix = [table[:, 0, 0][ids[:, 0]], table[ids[:, 0], ids[:, 1], 1]]
    by_prefix.append(table[ids[:, 0], ids[:, 1], ids[:, 2]])
    rewards = torch.stack(by_prefix, 1) * mask
    prompt = torch.ones(count, 1, dtype=torch.int64)
    parameters = list(model.parameters())

    def gradient(scalar):
        return torch.cat([g.flatten() for g in torch.autograd.grad(scalar, parameters)])

    logprobs = token_logprobs(model, prompt, prompt, ids, mask)
    probs = logprobs.sum(-1).exp()
    assert probs.sum().item() == pytest.approx(1.0, abs=1e-12)
    exact = gradient((probs * rewards.sum(-1)).sum())

    config = PolicyConfig(group_size=2, max_new_tokens=LENGTH, advantage=advantage)
    # Every pair of completions is one possible group; weigh its loss by its chance.
    i, j = (part.flatten() for part in torch.meshgrid(*[torch.arange(count)] * 2,
                                                      indexing="ij"))  # fmt: skip
    rows = torch.stack([i, j], 1).flatten()
    rollout = Rollout(
        prompt[rows], prompt[rows], ids[rows], mask[rows],
        torch.zeros(len(rows), LENGTH), rewards[rows], 2,
    )  # fmt: skip
    weight = (probs[i] * probs[j]).detach().repeat_interleave(2)[:, None]
    advantages = token_advantages(rollout, config)
    logprobs = token_logprobs(model, prompt, prompt, ids, mask)[rows]
    loss, _ = policy_loss(
        logprobs * weight, torch.zeros_like(logprobs), advantages, mask[rows],
        kind="reinforce", aggregate="constant", max_length=LENGTH,
    )  # fmt: skip
    expected = gradient(loss * len(rows) * LENGTH / 2)
    torch.testing.assert_close(expected, -exact, rtol=0, atol=1e-10)
    assert exact.norm() > 1e-3


# Rewards


def world_and_tokenizer():
    world = World.small()
    stories = world.sample_stories(100, torch.Generator().manual_seed(0))
    return world, WordTokenizer.train([story.words() for story in stories]), stories


def test_validity_marks_the_first_error_and_judges_no_further():
    world, tokenizer, stories = world_and_tokenizer()
    reward = ValidityReward(world, tokenizer)
    true = stories[0].words()
    false = [*true[:9], "gives" if true[9] != "gives" else "goes", *true[10:]]
    at = world.first_error(false)
    batch = [tokenizer.to_ids(words) for words in (true, false)]
    good, bad = reward(["", ""], ["", ""], batch)
    assert good == [0.0] * len(true)
    assert bad == [0.0] * at + [-1.0] + [None] * (len(false) - at - 1)
    assert reward.words(batch[0])[-1] == END


def test_validity_reads_the_prompt_as_part_of_the_story():
    world, tokenizer, stories = world_and_tokenizer()
    reward = ValidityReward(world, tokenizer)
    words = stories[1].words()
    prompt = " ".join(words[:8])
    rest = tokenizer.to_ids(words[8:])
    assert reward([prompt], [""], [rest]) == [[0.0] * len(rest)]
    wrong = [tokenizer.pad_id, *rest]
    assert reward([prompt], [""], [wrong])[0][:2] == [-1.0, None]


def test_a_sequence_reward_is_paid_on_the_last_token():
    mask = matrix([[1, 1, 1], [1, 0, 0]])
    rewards, kept = token_reward_matrix(
        lambda prompts, completions, completion_ids, **_: [0.5, 2.0],
        ["", ""], ["a b c", "a"], [[4, 5, 6], [4]], mask,
    )  # fmt: skip
    assert rewards.tolist() == [[0.0, 0.0, 0.5], [2.0, 0.0, 0.0]]
    assert torch.equal(kept, mask)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "1 values for 2 completions"),
        ([[0.0, 0.0], [1.0, 1.0]], "2 token rewards for 3 tokens"),
        ([0.0, float("nan")], "completion 1 of prompt 'second'"),
        ([[0.0, None, 1.0], 0.0], "after None"),
    ],
)
def test_a_reward_that_returns_nonsense_is_named(returned, message):
    def strange(**_):
        return returned

    with pytest.raises(ValueError, match=message) as error:
        token_reward_matrix(
            strange, ["first", "second"], ["", ""], [[4, 5, 6], [4]],
            matrix([[1, 1, 1], [1, 0, 0]]),
        )  # fmt: skip
    assert "'strange'" in str(error.value)


# Collecting and training


def small_policy(generator):
    world, tokenizer, _ = world_and_tokenizer()
    shape = {"width": 16, "layers": 1, "heads": 2, "max_length": 60}
    model = models.build("transformer", len(tokenizer), generator, **shape)
    return world, tokenizer, model


def test_collect_masks_what_was_not_judged(float64):
    world, tokenizer, model = small_policy(float64)
    reward = ValidityReward(world, tokenizer)
    rollout = collect(
        model, ["", "Today,"], reward, tokenizer, 10, 3, generator=float64
    )
    assert len(rollout) == 6
    assert rollout.prompt_mask[:3].sum() == 3, "an empty prompt is <bos> alone"
    assert (rollout.rewards == -1).all(), "an untrained model writes nonsense"
    last = rollout.lengths - 1
    assert (rollout.token_rewards.gather(1, last[:, None]) == -1).all()
    scored = token_logprobs(
        model, rollout.prompt_ids, rollout.prompt_mask, rollout.completion_ids,
        rollout.completion_mask,
    )  # fmt: skip
    kept = rollout.completion_mask.bool()
    torch.testing.assert_close(rollout.old_logprobs[kept], scored[kept])


def test_no_signal_no_update(float64):
    _, tokenizer, model = small_policy(float64)

    def same(completion_ids, **_):
        return [0.7 for _ in completion_ids]

    before = [p.clone() for p in model.parameters()]
    config = PolicyConfig(steps=3, group_size=4, max_new_tokens=5)
    history = train_policy(model, [""], same, config, tokenizer, float64)
    assert history["policy/grad_norm"] == [0.0] * 3
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new)


def test_an_update_moves_logprobs_with_the_sign_of_the_advantage(float64):
    _, tokenizer, model = small_policy(float64)

    def likes_eight(completion_ids, **_):
        return [[float(i == 8) for i in ids] for ids in completion_ids]

    config = PolicyConfig(
        group_size=64, max_new_tokens=4, learning_rate=1e-3, gamma=0.0
    )
    rollout = collect(model, [""], likes_eight, tokenizer, 4, 64, generator=float64)
    first = rollout.prompt_ids[:1], rollout.prompt_mask[:1]
    eight = torch.tensor([[8]]), torch.ones(1, 1)

    def probability():
        logits = completion_logits(model, *first, *eight).detach()
        return float(logits.softmax(-1)[0, 0, 8])

    before = probability()
    inputs = [
        getattr(rollout, name).clone() for name in ("token_rewards", "old_logprobs")
    ]
    learner = Learner(model, None, config)
    learner.optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    learner.update(prepare(rollout, model, None, None, config))
    assert probability() > before * 1.02
    assert torch.equal(inputs[0], rollout.token_rewards)
    assert torch.equal(inputs[1], rollout.old_logprobs)


def test_training_reaches_the_optimum_of_a_known_task(float64):
    """Reward 1 for each token 8 of 4: the best return is 4, chance gives about 0.2."""
    _, tokenizer, _ = world_and_tokenizer()

    def likes_eight(completion_ids, **_):
        return [[float(i == 8) for i in ids] for ids in completion_ids]

    config = PolicyConfig(steps=60, group_size=32, max_new_tokens=4, learning_rate=2e-2)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        _, _, model = small_policy(generator)
        history = train_policy(model, [""], likes_eight, config, tokenizer, generator)
        assert history["reward/mean"][0] < 1
        assert sum(history["reward/mean"][-5:]) / 5 > 3.8


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0), ("group_size", 1), ("gamma", 1.5), ("advantage", "mean"),
        ("aggregate", "sum"), ("learning_rate", 0.0), ("max_new_tokens", 2.5),
    ],
)  # fmt: skip
def test_a_wrong_configuration_names_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        PolicyConfig(**{field: value})


def test_prompts_must_be_a_list(float64):
    _, tokenizer, model = small_policy(float64)
    with pytest.raises(ValueError, match="list of texts"):
        train_policy(model, "Today", len, PolicyConfig(), tokenizer)


def test_a_rollout_checks_its_shapes():
    ids, mask = torch.ones(4, 2), torch.ones(4, 3)
    with pytest.raises(ValueError, match="old_logprobs"):
        Rollout(ids, ids, mask, mask, torch.ones(4, 2), mask, 2)
    with pytest.raises(ValueError, match="group_size=3"):
        Rollout(ids, ids, mask, mask, mask, mask, 3)
