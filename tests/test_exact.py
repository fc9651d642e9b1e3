"""The oracle: every value, optimum and gradient of a small process, cross-checked."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokrl import models
from tokrl.advantages import (
    compute_gae,
    group_advantages,
    leave_one_out_advantages,
    returns_to_go,
)
from tokrl.exact import (
    ENDED,
    divergence,
    entropy,
    enumerate_completions,
    enumerate_texts,
    gradient,
    gradient_moments,
    greedy,
    jacobian,
)
from tokrl.losses import kl_estimate, policy_loss
from tokrl.rewards import ValidityReward
from tokrl.runs import reproducible
from tokrl.scoring import token_logprobs
from tokrl.tokenizers import WordTokenizer
from tokrl.world import LANGUAGES, World

EOS_ID = 2


@pytest.fixture(autouse=True)
def float64():
    yield reproducible(0)
    torch.set_default_dtype(torch.float32)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def random_policy(tree, generator, scale=1.0):
    """A table of logits, to differentiate, and its log-probs."""
    logits = scale * torch.randn(tree.child.shape, generator=generator)
    logits.requires_grad_()
    return logits, logits.log_softmax(-1)


def cosine(a, b):
    return float(torch.cosine_similarity(a, b, 0))


def assert_equal(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# The tree


def test_a_tree_by_hand():
    tree = enumerate_completions(2, 3, eos_id=0)
    assert tree.states == [(), (1,), (1, 1)]
    assert tree.child.tolist() == [[ENDED, 1], [ENDED, 2], [ENDED, ENDED]]
    assert len(tree) == 4
    assert repr(tree) == "Tree(3 states, 2 tokens, 4 completions)"
    assert tree.completion_ids.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert tree.completion_mask.tolist() == [
        [1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]
    ]  # fmt: skip
    assert tree.completion_states.tolist() == [
        [0, 0, 0], [0, 1, 0], [0, 1, 2], [0, 1, 2]
    ]  # fmt: skip


@given(vocab_size=st.integers(2, 5), length=st.integers(1, 4), data=st.data())
@settings(max_examples=30, deadline=None)
def test_the_tree_holds_each_completion_once(vocab_size, length, data):
    eos_id = data.draw(st.integers(0, vocab_size - 1))
    tree = enumerate_completions(vocab_size, length, eos_id)
    expected = set()
    for ids in itertools.product(range(vocab_size), repeat=length):
        end = ids.index(eos_id) + 1 if eos_id in ids else length
        expected.add(ids[:end])
    found = [
        tuple(row[: sum(mask)])
        for row, mask in zip(
            tree.completion_ids.tolist(), tree.completion_mask.tolist(), strict=True
        )
    ]
    assert len(found) == len(tree) == len(expected)
    assert set(found) == expected
    for row, path in zip(found, tree.completion_states.tolist(), strict=True):
        for t in range(len(row)):
            assert tree.states[path[t]] == row[:t]


def test_an_episode_ends_where_the_caller_says():
    """As soon as two neighbours are alike, say."""
    tree = enumerate_completions(3, 4, EOS_ID, ends=lambda ids: ids[-2:-1] == ids[-1:])
    whole = enumerate_completions(3, 4, EOS_ID)
    assert len(tree) < len(whole)
    lengths = tree.completion_mask.sum(-1)
    for ids, length in zip(tree.completion_ids.tolist(), lengths.tolist(), strict=True):
        alike = [ids[t] == ids[t + 1] for t in range(length - 1)]
        assert not any(alike[:-1])
        over = ids[length - 1] == EOS_ID or length == 4
        assert over or alike[-1]


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_logprobs_are_those_of_scoring(float64, kind):
    shape = {"width": 8, "layers": 2}
    model = models.build(kind, 4, float64, **shape)
    tree = enumerate_completions(4, 4, EOS_ID)
    logprobs = tree.logprobs(model, [1, 3])
    assert_equal(logprobs.exp().sum(-1), torch.ones(len(tree.states)))
    prompt = torch.tensor([[1, 3]]).expand(len(tree), -1)
    ids, mask = tree.completion_ids, tree.completion_mask
    scored = token_logprobs(model, prompt, torch.ones_like(prompt), ids, mask)
    assert_equal(tree.along(logprobs), scored, 1e-12)
    assert_equal(tree.seq_logprobs(logprobs), scored.sum(-1), 1e-12)
    with torch.no_grad():  # the cache keeps its memory otherwise
        assert_equal(tree.logprobs(model, [1, 3]), logprobs, 1e-12)
    parameters = list(model.parameters())
    total = torch.randn(len(tree), generator=float64)
    assert_equal(
        gradient((total * tree.seq_logprobs(logprobs)).sum(), parameters),
        gradient((total * scored.sum(-1)).sum(), parameters),
    )


def test_a_state_is_reached_by_the_completions_through_it(float64):
    tree = enumerate_completions(3, 4, EOS_ID)
    _, logprobs = random_policy(tree, float64)
    probs = tree.seq_logprobs(logprobs).exp()
    assert_equal(probs.sum(), torch.tensor(1.0))
    through = torch.zeros(len(tree.states))
    for n, path in enumerate(tree.completion_states.tolist()):
        for t in range(int(tree.completion_mask[n].sum())):
            through[path[t]] += probs[n].detach()
    assert_equal(tree.state_logprobs(logprobs).exp(), through)


def test_rewards_of_completions_become_a_table_and_back(float64):
    tree = enumerate_completions(3, 3, EOS_ID)
    table = torch.randn(tree.child.shape, generator=float64)
    assert torch.equal(tree.table(tree.along(table)), table)
    outcomes = torch.randn(len(tree), generator=float64)
    assert torch.equal(tree.along(tree.table(outcomes)).sum(-1), outcomes)
    last = tree.completion_mask.sum(-1) - 1
    paid = tree.along(tree.table(outcomes)).gather(-1, last[:, None])[:, 0]
    assert torch.equal(paid, outcomes)
    oracle = outcomes[:, None] * tree.completion_mask  # paid before it is known
    with pytest.raises(ValueError, match="token 0 of completion 1 depends on what fol"):
        tree.table(oracle)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        tree.table(torch.zeros(2))


# Values


def test_a_bandit_of_two_tokens_by_hand():
    tree = enumerate_completions(2, 1, eos_id=0)
    logits = torch.tensor([[0.0, math.log(3)]], requires_grad=True)
    logprobs, rewards = logits.log_softmax(-1), torch.tensor([[1.0, 5.0]])
    found = tree.evaluate(logprobs, rewards)
    assert found.values.tolist() == pytest.approx([4.0])
    assert found.q_values.tolist() == [[1.0, 5.0]]
    assert found.advantages.tolist()[0] == pytest.approx([-3.0, 1.0])
    # The gradient of a softmax: pi_a A_a.
    assert gradient(found.values[0], [logits]).tolist() == pytest.approx([-0.75, 0.75])
    assert tree.optimum(rewards).values.tolist() == [5.0]
    best, logprobs_best = tree.soft_optimum(rewards, logprobs, 2.0)
    z = 0.25 * math.exp(0.5) + 0.75 * math.exp(2.5)
    assert best.values[0].item() == pytest.approx(2 * math.log(z))
    assert logprobs_best[0, 0].exp().item() == pytest.approx(0.25 * math.exp(0.5) / z)


def test_values_are_conditional_means_of_returns(float64):
    tree = enumerate_completions(3, 4, EOS_ID)
    _, logprobs = random_policy(tree, float64)
    rewards = torch.randn(tree.child.shape, generator=float64)
    found = tree.evaluate(logprobs, rewards)
    mask = tree.completion_mask.bool()
    probs = tree.seq_logprobs(logprobs).exp()[:, None].expand(mask.shape)[mask]
    returns = returns_to_go(tree.along(rewards), tree.completion_mask)[mask]
    at, ids = tree.completion_states[mask], tree.completion_ids[mask]
    # Average over all completions through a state, and through a state and a token.
    mass = torch.zeros(len(tree.states)).index_add(0, at, probs)
    values = torch.zeros_like(mass).index_add(0, at, probs * returns) / mass
    assert_equal(found.values, values)
    entry = at * 3 + ids
    mass = torch.zeros(tree.child.numel()).index_add(0, entry, probs)
    q_values = torch.zeros_like(mass).index_add(0, entry, probs * returns) / mass
    assert_equal(found.q_values.flatten(), q_values)
    assert_equal((logprobs.exp() * found.advantages).sum(-1), torch.zeros(len(values)))
    # Nothing is left to chance but the tokens: step by step, their advantages tell
    # the outcome from what was expected.
    told = found.values[0] + tree.along(found.advantages).sum(-1)
    assert_equal(told, tree.along(rewards).sum(-1))


def test_the_optimum_is_the_best_completion_from_each_state(float64):
    tree = enumerate_completions(3, 4, EOS_ID)
    rewards = torch.randn(tree.child.shape, generator=float64)
    best = tree.optimum(rewards)
    returns = returns_to_go(tree.along(rewards), tree.completion_mask)
    for state in range(len(tree.states)):
        through = (tree.completion_states == state) & tree.completion_mask.bool()
        assert float(best.values[state]) == pytest.approx(float(returns[through].max()))
    logprobs = greedy(best.q_values)
    assert_equal(tree.evaluate(logprobs, rewards).values, best.values)
    assert float(entropy(tree.seq_logprobs(logprobs))) == 0
    # No step of a policy is better than the best, and some are worse.
    assert (best.advantages <= 0).all()
    assert (best.advantages < -0.01).any()
    _, other = random_policy(tree, float64)
    assert (tree.evaluate(other, rewards).values < best.values).all()


@pytest.mark.parametrize("beta", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("paid", ["at the end", "token by token"])
def test_the_best_policy_under_a_kl_penalty(float64, beta, paid):
    tree = enumerate_completions(4, 4, EOS_ID)
    assert len(tree) == 121
    _, reference = random_policy(tree, float64)
    reference = reference.detach()
    if paid == "at the end":
        rewards = tree.table(torch.randn(len(tree), generator=float64))
    else:
        rewards = torch.randn(tree.child.shape, generator=float64)
    outcome = tree.along(rewards).sum(-1)
    seq_ref = tree.seq_logprobs(reference)
    log_z = (seq_ref + outcome / beta).logsumexp(0)

    best, logprobs = tree.soft_optimum(rewards, reference, beta)
    seq_best = tree.seq_logprobs(logprobs)
    assert_equal(logprobs.logsumexp(-1), torch.zeros(len(tree.states)))
    assert_equal(best.values[0], beta * log_z)
    # pi* = pi_ref exp(R / beta) / Z, so that the log-ratios spell the reward out.
    assert_equal(seq_best, seq_ref + outcome / beta - log_z)
    spelt = beta * tree.along(logprobs - reference).sum(-1)
    assert_equal(spelt, outcome - best.values[0], 1e-9)

    def objective(logprobs):
        kl = divergence(tree.seq_logprobs(logprobs), seq_ref)
        return tree.evaluate(logprobs, rewards).values[0] - beta * kl

    assert_equal(objective(logprobs), best.values[0])
    # The top of a hill: no slope, and elsewhere lower, by beta KL(pi, pi*).
    logits = logprobs.clone().requires_grad_()
    slope = gradient(objective(logits.log_softmax(-1)), [logits])
    assert_equal(slope, torch.zeros_like(slope))
    for scale in (0.1, 1.0):
        noise = torch.randn(logprobs.shape, generator=float64)
        other = (logprobs + scale * noise).log_softmax(-1)
        distance = divergence(tree.seq_logprobs(other), seq_best)
        assert_equal(best.values[0] - objective(other), beta * distance)
        assert distance > 0


def test_the_penalty_leads_from_the_optimum_to_the_reference(float64):
    tree = enumerate_completions(3, 3, EOS_ID)
    _, reference = random_policy(tree, float64)
    reference = reference.detach()
    rewards = torch.randn(tree.child.shape, generator=float64)
    hard, mean = tree.optimum(rewards), tree.evaluate(reference, rewards)
    for beta, limit in ((1e-4, hard), (1e6, mean)):
        soft, _ = tree.soft_optimum(rewards, reference, beta)
        assert_equal(soft.values, limit.values, 1e-3)
    steps = [
        float(tree.soft_optimum(rewards, reference, beta)[0].values[0])
        for beta in (0.01, 0.1, 1.0, 10.0)
    ]
    assert steps == sorted(steps, reverse=True)


def test_divergence_and_entropy_add_up_over_states(float64):
    """Of completions: that of each state, weighed by how often it is reached."""
    tree = enumerate_completions(3, 4, EOS_ID)
    _, p = random_policy(tree, float64)
    _, q = random_policy(tree, float64)
    reached = tree.state_logprobs(p).exp()
    whole = divergence(tree.seq_logprobs(p), tree.seq_logprobs(q))
    assert_equal((reached * divergence(p, q)).sum(), whole)
    assert_equal(tree.evaluate(p, p - q).values[0], whole)
    whole = entropy(tree.seq_logprobs(p))
    assert_equal((reached * entropy(p)).sum(), whole)
    assert torch.equal(divergence(p, p), torch.zeros(len(tree.states)))
    assert (divergence(p, q) > 0).all()
    assert not torch.allclose(divergence(p, q), divergence(q, p))


def test_what_a_policy_never_does_costs_nothing(float64):
    tree = enumerate_completions(3, 3, EOS_ID)
    logits, p = random_policy(tree, float64)
    never = torch.tensor([[False, True, False]])
    logits = logits.detach().masked_fill(never, -math.inf).requires_grad_()
    sure = logits.log_softmax(-1)
    kl = divergence(tree.seq_logprobs(sure), tree.seq_logprobs(p.detach()))
    possible = tree.seq_logprobs(sure) > -math.inf
    assert 0 < possible.sum() < len(tree)
    probs = tree.seq_logprobs(sure)[possible].exp()
    by_hand = probs * (probs.log() - tree.seq_logprobs(p)[possible])
    assert_equal(kl, by_hand.sum())
    slope = gradient(kl, [logits])
    assert slope.isfinite().all()
    assert slope.norm() > 0.01
    assert divergence(tree.seq_logprobs(p), tree.seq_logprobs(sure)) == math.inf
    assert float(entropy(torch.tensor([0.0, -math.inf]))) == 0


# Gradients


@pytest.mark.parametrize("what", ["J", "KL", "entropy"])
def test_exact_gradients_agree_with_finite_differences(float64, what):
    model = models.build("transformer", 3, float64, width=8, layers=1, heads=2)
    tree = enumerate_completions(3, 3, EOS_ID)
    rewards = torch.randn(tree.child.shape, generator=float64)
    _, reference = random_policy(tree, float64)
    parameters = list(model.parameters())

    def value():
        logprobs = tree.logprobs(model, [1])
        if what == "J":
            return tree.evaluate(logprobs, rewards).values[0]
        if what == "entropy":
            return entropy(tree.seq_logprobs(logprobs))
        return divergence(tree.seq_logprobs(logprobs), tree.seq_logprobs(reference))

    exact = gradient(value(), parameters)
    assert exact.norm() > 1e-2
    start = torch.nn.utils.parameters_to_vector(parameters).detach()
    for _ in range(5):
        direction = torch.randn(start.shape, generator=float64)
        direction /= direction.norm()
        ends = []
        for step in (1e-5, -1e-5):
            torch.nn.utils.vector_to_parameters(start + step * direction, parameters)
            ends.append(float(value().detach()))
        slope = (ends[0] - ends[1]) / 2e-5
        assert slope == pytest.approx(float(exact @ direction), abs=1e-8)


def test_the_jacobian_holds_the_gradient_of_each_entry(float64):
    model = models.build("gru", 3, float64, width=4, layers=1)
    tree = enumerate_completions(3, 2, EOS_ID)
    logprobs = tree.logprobs(model, [1])
    parameters = list(model.parameters())
    table = torch.randn(logprobs.shape, generator=float64)
    score = jacobian(logprobs, parameters)
    assert score.shape == (logprobs.numel(), sum(p.numel() for p in parameters))
    unused = torch.zeros(2, requires_grad=True)
    whole = gradient((table * logprobs).sum(), [*parameters, unused])
    assert whole[-2:].tolist() == [0.0, 0.0]
    whole = whole[:-2]
    assert_equal(table.flatten() @ score, whole)
    # Each state's scores have mean 0 under the policy.
    mean = logprobs.exp().flatten()[:, None] * score
    assert_equal(mean.view(*logprobs.shape, -1).sum(1), torch.zeros(3, score.shape[1]))


class Process:
    """A process with a random policy and random rewards, and its exact gradient."""

    def __init__(self, generator, vocab_size=4, length=4, outcome=False):
        self.length = length
        self.tree = tree = enumerate_completions(vocab_size, length, EOS_ID)
        self.mask = tree.completion_mask
        self.logits, self.logprobs = random_policy(tree, generator)
        self.score = jacobian(self.logprobs, [self.logits])
        rewards = torch.randn(tree.child.shape, generator=generator)
        if outcome:
            rewards = tree.table(torch.randn(len(tree), generator=generator))
        self.token_rewards = tree.along(rewards)
        self.rewards = self.token_rewards.sum(-1)
        self.values = tree.evaluate(self.logprobs, rewards)
        self.exact = self.gradient(self.values.values[0])

    def gradient(self, scalar):
        return gradient(scalar, [self.logits])

    def of_loss(self, loss):
        """Expected gradient of a loss that looks at one completion, with moments."""
        return gradient_moments(self.tree, self.logprobs, self.score, loss)

    def of_advantages(self, advantages):
        """The same of REINFORCE with an advantage (N, T) for each token."""
        return self.of_loss(
            lambda rows, logprobs: -(advantages[rows].detach() * logprobs).sum()
        )

    def of_groups(self, group_size, advantages, aggregate):
        """The same of a policy loss on groups; advantages(rewards, G, mask)."""

        def loss(rows, logprobs):
            return policy_loss(
                logprobs, logprobs.detach(),
                advantages(self.rewards[rows], group_size, self.mask[rows]),
                self.mask[rows], kind="reinforce", aggregate=aggregate,
                max_length=self.length,
            )[0]  # fmt: skip

        return gradient_moments(self.tree, self.logprobs, self.score, loss, group_size)


def test_moments_count_every_ordered_group(float64):
    """Against all G-tuples, one by one, differentiated through the model."""
    model = models.build("transformer", 3, float64, width=4, layers=1, heads=1)
    parameters = list(model.parameters())
    tree = enumerate_completions(3, 2, EOS_ID)
    logprobs = tree.logprobs(model, [1])
    rewards = torch.randn(len(tree), generator=float64)
    mask, probs = tree.completion_mask, tree.seq_logprobs(logprobs).exp().detach()

    def loss(rows, logprobs):
        spread = rewards[rows] - rewards[rows].mean()
        return (spread[:, None] * logprobs).sum() ** 2 / mask[rows].sum()

    gradients, weights = [], []
    for group in itertools.product(range(len(tree)), repeat=3):
        rows = torch.tensor(group)
        gradients.append(gradient(loss(rows, tree.along(logprobs)[rows]), parameters))
        weights.append(probs[rows].prod())
    gradients, weights = torch.stack(gradients), torch.stack(weights)
    mean = weights @ gradients
    variance = weights @ (gradients - mean).square().sum(-1)
    score = jacobian(logprobs, parameters)
    found = gradient_moments(tree, logprobs, score, loss, group_size=3)
    assert_equal(found.mean, mean)
    assert found.variance == pytest.approx(float(variance), rel=1e-10)
    assert mean.norm() > 1e-4


def test_every_form_of_the_policy_gradient_is_exact_on_average(float64):
    p = Process(float64)
    whole = p.rewards[:, None] * p.mask
    to_go = returns_to_go(p.token_rewards, p.mask)
    values = p.tree.along(p.values.values)
    advantages = {
        "outcome": whole,
        "outcome, baseline": whole - 3.0 * p.mask,
        "to go": to_go,
        "to go, V of the start": to_go - p.values.values[0] * p.mask,
        "to go, V of the state": to_go - values,
        "Q": p.tree.along(p.values.q_values),
        "A": p.tree.along(p.values.advantages),
    }
    for gae_lambda in (0.0, 0.5, 0.95, 1.0):
        gae, returns = compute_gae(p.token_rewards, values, p.mask, 1.0, gae_lambda)
        advantages[f"GAE({gae_lambda})"] = gae
    assert p.exact.norm() > 0.1
    for name, table in advantages.items():
        mean = p.of_advantages(table).mean
        torch.testing.assert_close(
            mean, -p.exact, rtol=0, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}"
        )
    # What depends on the token that it judges is no baseline.
    tilted = to_go - p.tree.along(p.values.q_values)
    assert p.of_advantages(tilted).mean.norm() < 1e-10, "all signal taken away"
    # Immediate credit alone is another gradient where later rewards matter.
    immediate = returns_to_go(p.token_rewards, p.mask, gamma=0.0)
    assert cosine(-p.of_advantages(immediate).mean, p.exact) < 0.99


def test_gae_with_exact_values_is_the_advantage_on_average(float64):
    p = Process(float64)
    mask = p.mask.bool()
    probs = p.tree.seq_logprobs(p.logprobs).exp()[:, None].expand(mask.shape)[mask]
    entry = (p.tree.completion_states * 4 + p.tree.completion_ids)[mask]
    mass = torch.zeros(p.logprobs.numel()).index_add(0, entry, probs)
    for gae_lambda in (0.0, 0.7, 1.0):
        gae, _ = compute_gae(
            p.token_rewards, p.tree.along(p.values.values), p.mask, 1.0, gae_lambda
        )
        mean = torch.zeros_like(mass).index_add(0, entry, probs * gae[mask]) / mass
        assert_equal(mean, p.values.advantages.flatten())
        if gae_lambda == 0:
            assert_equal(gae, p.tree.along(p.values.advantages))


@pytest.mark.parametrize("group_size", [2, 3, 4])
def test_the_expected_gradient_of_rloo_is_exact(float64, group_size):
    p = Process(float64, 3, 3, outcome=True)
    assert len(p.tree) == 15
    found = p.of_groups(group_size, leave_one_out_advantages, "constant")
    assert_equal(found.mean * p.length, -p.exact)


def test_a_model_has_the_same_expected_gradients(float64):
    """As above, but the parameters are those of a Transformer, not a table."""
    model = models.build("transformer", 3, float64, width=8, layers=1, heads=2)
    parameters = list(model.parameters())
    tree = enumerate_completions(3, 3, EOS_ID)
    logprobs, mask = tree.logprobs(model, [1]), tree.completion_mask
    rewards = torch.randn(len(tree), generator=float64)
    exact = gradient(tree.evaluate(logprobs, tree.table(rewards)).values[0], parameters)

    def loss(rows, logprobs):
        advantages = leave_one_out_advantages(rewards[rows], 2, mask[rows])
        return -(advantages * logprobs).sum() / 2

    found = gradient_moments(tree, logprobs, jacobian(logprobs, parameters), loss, 2)
    assert_equal(found.mean, -exact)
    assert exact.norm() > 1e-2


def test_the_more_an_estimator_knows_the_less_it_varies(float64):
    """Variance of one completion's gradient, over the square of the exact one."""
    p = Process(float64)
    values = p.tree.along(p.values.values)

    def gae(gae_lambda):
        return compute_gae(p.token_rewards, values, p.mask, 1.0, gae_lambda)[0]

    noise = [
        p.of_advantages(advantages).variance / float(p.exact.square().sum())
        for advantages in (
            p.rewards[:, None] * p.mask,
            returns_to_go(p.token_rewards, p.mask),
            gae(1.0),
            gae(0.95),
            gae(0.5),
            p.tree.along(p.values.advantages),
        )
    ]
    assert noise == sorted(noise, reverse=True)
    assert noise == pytest.approx([18.79, 10.05, 9.264, 8.744, 6.192, 5.579], rel=1e-3)


def test_a_group_is_its_own_baseline(float64):
    """Variance for each completion, when all rewards are about 5."""
    p = Process(float64, 3, 3, outcome=True)
    p.rewards += 5.0

    def rloo(group_size):
        found = p.of_groups(group_size, leave_one_out_advantages, "constant")
        assert_equal(found.mean * p.length, -p.exact)
        return found.variance * p.length**2 * group_size

    alone = p.of_advantages(p.rewards[:, None] * p.mask).variance
    expected = (p.tree.seq_logprobs(p.logprobs).exp() * p.rewards).sum()
    known = p.of_advantages((p.rewards - expected)[:, None] * p.mask).variance
    noise = [alone, rloo(2), rloo(4), known]
    assert noise == sorted(noise, reverse=True)
    assert noise[0] > 5 * noise[1]
    # Without that offset a baseline has little to take away, and one from a single
    # other completion adds noise of its own.
    p.rewards -= 5.0
    assert rloo(2) == pytest.approx(noise[1])
    assert rloo(2) > p.of_advantages(p.rewards[:, None] * p.mask).variance


# Where the KL penalty may be placed


def kl_process(generator):
    p = Process(generator)
    _, reference = random_policy(p.tree, generator)
    reference = reference.detach()
    kl = divergence(p.tree.seq_logprobs(p.logprobs), p.tree.seq_logprobs(reference))
    return p, reference, p.gradient(kl)


def test_kl_of_whole_completions_in_the_loss(float64):
    p, reference, exact = kl_process(float64)
    ref_logprobs = p.tree.along(reference)

    def mean(kind):
        def loss(rows, logprobs):
            ours, theirs = logprobs.sum(-1), ref_logprobs[rows].sum(-1)
            return kl_estimate(ours, theirs, kind).sum()

        return p.of_loss(loss).mean

    assert exact.norm() > 0.1
    assert_equal(mean("k1"), torch.zeros_like(exact))
    assert_equal(mean("k2"), exact)
    forward = p.gradient(
        divergence(p.tree.seq_logprobs(reference), p.tree.seq_logprobs(p.logprobs))
    )
    assert_equal(mean("k3"), forward)
    assert cosine(forward, exact) < 0.95


def test_kl_of_tokens_in_the_loss(float64):
    """It misses that a token also decides how much later ones will cost.

    k2 gives the gradient of each state's divergence, the states being taken as they
    come; k3 the same of the forward divergence; k1 nothing.
    """
    p, reference, exact = kl_process(float64)
    ref_logprobs = p.tree.along(reference)

    def mean(kind):
        return p.of_loss(
            lambda rows, lp: (kl_estimate(lp, ref_logprobs[rows], kind)).sum()
        ).mean

    reached = p.tree.state_logprobs(p.logprobs).exp().detach()
    assert_equal(mean("k1"), torch.zeros_like(exact))
    local = p.gradient((reached * divergence(p.logprobs, reference)).sum())
    assert_equal(mean("k2"), local)
    forward = p.gradient((reached * divergence(reference, p.logprobs)).sum())
    assert_equal(mean("k3"), forward)
    assert cosine(local, exact) < 0.9
    assert cosine(forward, exact) < 0.95


def test_kl_of_tokens_in_the_reward(float64):
    """k1 there is exact, with reward-to-go or without; alone it is k2 in the loss."""
    p, reference, exact = kl_process(float64)
    logprobs, ref_logprobs = p.tree.along(p.logprobs), p.tree.along(reference)
    cost = -kl_estimate(logprobs, ref_logprobs, "k1").detach()
    assert_equal(p.of_advantages(returns_to_go(cost, p.mask)).mean, exact)
    assert_equal(p.of_advantages(cost.sum(-1, keepdim=True) * p.mask).mean, exact)
    reached = p.tree.state_logprobs(p.logprobs).exp().detach()
    local = p.gradient((reached * divergence(p.logprobs, reference)).sum())
    assert_equal(p.of_advantages(returns_to_go(cost, p.mask, 0.0)).mean, local)
    # k3 has the right mean, but as a reward it loses the part of its gradient that
    # goes through itself: that of the forward divergence.
    k3 = kl_estimate(logprobs, ref_logprobs, "k3").detach()
    found = p.of_advantages(returns_to_go(-k3, p.mask)).mean
    forward = p.gradient((reached * divergence(reference, p.logprobs)).sum())
    assert_equal(found, exact - forward)


# How a loss is added up


def test_dr_grpo_is_the_exact_gradient_scaled(float64):
    for group_size in (2, 3):
        p = Process(float64, 3, 3, outcome=True)
        found = p.of_groups(group_size, unscaled, "constant").mean
        assert_equal(found, -(1 - 1 / group_size) / p.length * p.exact)


def unscaled(rewards, group_size, mask):
    return group_advantages(rewards, group_size, mask, scale="none")


def test_the_mean_over_sequences_has_a_bias_that_no_group_size_cures(float64):
    """Its expectation is (1 - 1/G) (grad E[R / len] - J grad E[1 / len])."""
    p = Process(float64, 3, 3, outcome=True)
    probs, lengths = p.tree.seq_logprobs(p.logprobs).exp(), p.mask.sum(-1)
    shorter = p.gradient((probs / lengths).sum())
    paid_per_token = p.gradient((probs * p.rewards / lengths).sum())
    biased = paid_per_token - p.values.values[0].detach() * shorter
    for group_size in (2, 4):
        found = p.of_groups(group_size, unscaled, "sequence_mean").mean
        assert_equal(found, -(1 - 1 / group_size) * biased)
    assert cosine(biased, p.exact) < 0.99


def test_the_bias_of_each_way_to_add_up(float64):
    """Cosine of the expected gradient with the exact one."""
    p = Process(float64, 3, 3, outcome=True)

    def alignment(group_size, advantages, mode):
        return cosine(-p.of_groups(group_size, advantages, mode).mean, p.exact)

    modes = ("constant", "token_mean", "sequence_mean")
    plain = [alignment(2, unscaled, mode) for mode in modes]
    scaled = [alignment(2, group_advantages, mode) for mode in modes]
    assert plain == pytest.approx([1.0, 0.9891, 0.9443], abs=1e-4)
    assert scaled == pytest.approx([0.9505, 0.9021, 0.8719], abs=1e-4)
    assert plain[0] == pytest.approx(1.0, abs=1e-12)
    # The mean over tokens is the better, the less one completion decides their number.
    assert alignment(4, unscaled, "token_mean") == pytest.approx(0.9969, abs=1e-4)


# The small world


@pytest.fixture(scope="module", params=LANGUAGES)
def told(request):
    """All stories of a small world as a tree, and the world's own next-token table."""
    world, lang = World.small(1), request.param
    stories = {tuple(s.words(lang)): s for s in world.all_stories()}
    tokenizer = WordTokenizer.train(stories)
    tree = enumerate_texts(map(tokenizer.to_ids, stories), len(tokenizer))
    probs = torch.zeros(tree.child.shape, dtype=torch.float64)
    for i, state in enumerate(tree.states):
        following = world.next_word_probs(tokenizer.to_tokens(state), lang)
        for word, prob in following.items():
            probs[i, tokenizer.vocab[word]] = prob
    return world, lang, tokenizer, stories, tree, probs


def test_the_small_world_writes_its_stories_and_nothing_else(told):
    world, lang, tokenizer, stories, tree, probs = told
    assert_equal(probs.sum(-1), torch.ones(len(tree.states)))
    assert torch.equal(tree.outside, probs == 0)
    seq_logprobs = tree.seq_logprobs(probs.log())
    possible = seq_logprobs > -math.inf
    assert possible.sum() == len(stories)
    ids, lengths = tree.completion_ids[possible], tree.completion_mask.sum(-1)[possible]
    for row, size, found in zip(ids, lengths, seq_logprobs[possible], strict=True):
        words = tokenizer.to_tokens(row[:size].tolist())
        assert float(found) == pytest.approx(stories[tuple(words)].log_prob, abs=1e-9)
    assert_equal(seq_logprobs.exp().sum(), torch.tensor(1.0))
    floor = world.entropy_rate(lang)
    assert float(entropy(seq_logprobs)) == pytest.approx(floor.per_story, abs=1e-9)
    words = tree.evaluate(probs.log(), torch.ones(probs.shape)).values[0]
    assert float(words) == pytest.approx(floor.words, abs=1e-9)


def test_value_iteration_solves_the_small_world(told):
    *_, tree, probs = told
    validity = -1.0 * tree.outside
    best = tree.optimum(validity)
    assert torch.equal(best.values, torch.zeros(len(tree.states)))
    assert torch.equal(best.q_values, validity), "only the next token can be wrong"
    logprobs = greedy(best.q_values)
    assert tree.evaluate(logprobs, validity).values[0] == 0
    written = tree.seq_logprobs(logprobs).argmax()
    assert not tree.along(1.0 * tree.outside)[written].any()
    uniform = torch.zeros(probs.shape).log_softmax(-1)
    assert tree.evaluate(uniform, validity).values[0] < -0.999
    assert tree.evaluate(probs.log(), validity).values[0] == 0


def test_outside_is_where_the_validity_reward_falls(told):
    world, lang, tokenizer, _, tree, _ = told
    reward = ValidityReward(world, tokenizer, lang)
    chosen = torch.randperm(len(tree), generator=seeded(0))[:300]
    rows = [
        ids[: sum(mask)]
        for ids, mask in zip(
            tree.completion_ids[chosen].tolist(),
            tree.completion_mask[chosen].tolist(), strict=True,
        )
    ]  # fmt: skip
    empty = [""] * len(rows)
    judged = reward(prompts=empty, completions=empty, completion_ids=rows)
    expected = tree.along(-1.0 * tree.outside)[chosen].tolist()
    for row, ids, values in zip(judged, rows, expected, strict=True):
        assert row == values[: len(ids)]
    assert sum(row[-1] for row in judged) < -200


def test_the_least_divergence_that_makes_all_stories_true(told):
    """It is -log of the share of true ones: the reference, given that it is true."""
    *_, tree, probs = told
    reference = (0.99 * probs + 0.01 / probs.shape[1]).log()
    validity = -1.0 * tree.outside
    share = 1 + tree.evaluate(reference, validity).values[0]
    assert 0.6 < share < 0.9
    best, logprobs = tree.soft_optimum(validity, reference, 0.01)
    assert tree.evaluate(logprobs, validity).values[0] > -1e-12
    seq_ref = tree.seq_logprobs(reference)
    kl = divergence(tree.seq_logprobs(logprobs), seq_ref)
    assert_equal(kl, -share.log())
    assert_equal(best.values[0], 0.01 * share.log())


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 3, 0), "vocab_size=1"),
        ((3, 0, 2), "max_length=0"),
        ((3, 3, 3), "eos_id=3"),
        ((3, 3, -1), "eos_id=-1"),
        ((100, 10, 2), "10,000,000"),
    ],
)
def test_processes_that_cannot_be_enumerated(arguments, message):
    with pytest.raises(ValueError, match=message):
        enumerate_completions(*arguments)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no texts"),
        ([[]], "no texts"),
        ([[3, 2], [3, 2, 2]], "beginning of another"),
        ([[3, 4, 2]], "ids from 2 to 4"),
        ([[-1, 2]], "ids from -1 to 2"),
    ],
)
def test_texts_that_make_no_tree(texts, message):
    with pytest.raises(ValueError, match=message):
        enumerate_texts(texts, 4)


def test_a_tree_of_texts_by_hand():
    tree = enumerate_texts([[3, 2], [3, 1, 2]], 4)
    assert tree.states == [(), (3,), (3, 1)]
    assert tree.child.tolist() == [[-1, -1, -1, 1], [-1, 2, -1, -1], [-1, -1, -1, -1]]
    inside = [(0, 3), (1, 1), (1, 2), (2, 2)]
    assert (~tree.outside).nonzero().tolist() == [list(pair) for pair in inside]


def test_wrong_arguments_are_named(float64):
    tree = enumerate_completions(3, 3, EOS_ID)
    logits, logprobs = random_policy(tree, float64)
    model = models.build("gru", 4, float64, width=4, layers=1)
    with pytest.raises(ValueError, match="4 tokens for a tree over 3"):
        tree.logprobs(model, [1])
    model = models.build("gru", 3, float64, width=4, layers=1)
    with pytest.raises(ValueError, match="a prompt of 0 ids"):
        tree.logprobs(model, [])
    with pytest.raises(ValueError, match=r"shape \(15,\)"):
        tree.evaluate(logprobs, torch.zeros(15))
    with pytest.raises(ValueError, match="beta=0"):
        tree.soft_optimum(torch.zeros(logits.shape), logprobs, 0)
    for size in (0, 9):
        with pytest.raises(ValueError, match=f"group_size={size}"):
            gradient_moments(tree, logprobs, logits, lambda rows, lp: lp.sum(), size)


def test_a_table_of_another_shape_is_refused():
    """There are more completions than states: outcomes would be read as values."""
    tree = enumerate_completions(3, 3, 2)
    for table in (torch.zeros(len(tree)), torch.zeros(len(tree.states), 5)):
        with pytest.raises(ValueError, match=r"table has shape .*give \(7, 3\)"):
            tree.along(table)
    texts = [[0, 1], [0, 2]]
    lists, tensors = (enumerate_texts(t, 3) for t in (texts, torch.tensor(texts)))
    assert lists.states == tensors.states
