"""Small token decision processes, enumerated: values, optima and gradients, exactly.

Axes: M states, V tokens, N completions, T tokens in the longest, K parameters.
A state is what has been written so far. What depends on a state and a token is a
*table* (M, V): a policy's log-probs, a reward, Q, advantages. `Tree.along` lays a
table over all completions, (N, T): they are a batch like any other, of known
probability, and the losses and advantages of the package apply to it.
Rewards are added up without discount, gamma = 1.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, combinations_with_replacement
from math import comb, factorial, inf, prod
from operator import index
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ENDED = -1
MOST_ENTRIES = 10_000_000  # of a table
MOST_GROUPS = 200_000


class Values(NamedTuple):
    """What is to be expected from each state on.

    values    (M,): V(s); the objective J is values[0]
    q_values  (M, V): Q(s, a), the token a being chosen first
    """

    values: Tensor
    q_values: Tensor

    @property
    def advantages(self) -> Tensor:
        """A(s, a) = Q(s, a) - V(s), (M, V)."""
        return self.q_values - self.values[:, None]


@dataclass(frozen=True, eq=False, repr=False)
class Tree:
    """Every completion of one prompt, as a tree; `enumerate_completions` makes it.

    states   the M states, each the ids written so far: () first, shorter ones first
    child    (M, V) int64, the state that a token leads to; ENDED if the episode ends
             with it
    outside  (M, V) bool, the tokens after which no text of `enumerate_texts` goes on
    A completion is a token that ends the episode, and what led to it: N of them, in
    the order of their last states and tokens.
    """

    states: list[tuple[int, ...]]
    child: Tensor
    outside: Tensor

    # The completions as a batch.

    @cached_property
    def completion_states(self) -> Tensor:
        """(N, T), the state s_t in which each token was chosen; 0 where masked."""
        return self._paths[self._ends[0]].clamp(min=0)

    @cached_property
    def completion_mask(self) -> Tensor:
        """(N, T), 1 on the tokens of each completion, the last one included."""
        return (self._paths[self._ends[0]] >= 0).long()

    @cached_property
    def completion_ids(self) -> Tensor:
        """(N, T), 0 where masked."""
        ids = F.pad(self._came[1, self.completion_states[:, 1:]], (0, 1))
        last = self.completion_mask.sum(-1) - 1
        return ids.scatter(-1, last[:, None], self._ends[1][:, None])

    def __len__(self) -> int:
        return len(self._ends[0])

    def __repr__(self) -> str:
        states, tokens = self.child.shape
        return f"Tree({states} states, {tokens} tokens, {len(self)} completions)"

    def along(self, table: Tensor) -> Tensor:
        """A table (M, V), or a number for each state (M,), over completions: (N, T).

        Each token of a completion gets its entry, or that of the state it was chosen
        in; 0 where masked. Gradients flow. Raises ValueError for another shape.
        """
        shape = tuple(self.child.shape)
        if tuple(table.shape) not in (shape, shape[:1]):
            raise ValueError(
                f"table has shape {tuple(table.shape)}: give {shape}, or {shape[:1]} "
                "with a number for each state"
            )
        at = self.completion_states
        chosen = table[at, self.completion_ids] if table.dim() == 2 else table[at]
        return torch.where(self.completion_mask.bool(), chosen, 0.0)

    def table(self, rewards: Tensor) -> Tensor:
        """Rewards of completions as a table (M, V), the inverse of `along`.

        rewards: outcomes (N,), paid on the last token; or of each token (N, T).
        Raises ValueError for another shape, or if a token's reward differs between
        completions that are alike up to that token: then it depends on the future.
        """
        table = rewards.new_zeros(self.child.shape)
        if rewards.shape == (len(self),):
            table[self._ends] = rewards
            return table
        mask = self.completion_mask.bool()
        if rewards.shape != mask.shape:
            raise ValueError(
                f"rewards of shape {tuple(rewards.shape)}: give (N,) = {(len(self),)} "
                f"or (N, T) = {tuple(mask.shape)}"
            )
        table[self.completion_states[mask], self.completion_ids[mask]] = rewards[mask]
        differ = ~torch.isclose(self.along(table), rewards) & mask
        if differ.any():
            n, t = differ.nonzero()[0].tolist()
            raise ValueError(
                f"the reward of token {t} of completion {n} depends on what follows: "
                "pay it later, where it is known"
            )
        return table

    # Policies.

    def logprobs(self, policy: nn.Module, prompt_ids: Sequence[int]) -> Tensor:
        """The log-probs (M, V), nats, of a model's next token in every state.

        policy      a `LanguageModel`: it is read through its `new_cache`
        prompt_ids  what the model has read before, at least one id
        Gradients flow. Of a plain table of logits they are `logits.log_softmax(-1)`.
        Raises ValueError for no prompt, or a policy over other tokens.
        """
        if policy.vocab_size != self.child.shape[1] or not len(prompt_ids):
            raise ValueError(
                f"a policy over {policy.vocab_size} tokens for a tree over "
                f"{self.child.shape[1]}, a prompt of {len(prompt_ids)} ids: give "
                "equal numbers of tokens, and at least one id"
            )
        # Each state is read once: one token after the state before it, from the cache.
        prompt = torch.as_tensor(prompt_ids)[None]
        cache = policy.new_cache(1, prompt.shape[1] + len(self._levels) - 1)
        logits = [policy(prompt, None, cache)[0][:, -1]]
        for before, level in zip(self._levels, self._levels[1:], strict=False):
            state, token = self._came[:, level]
            cache.keep(state - before.start)
            logits.append(policy(token[:, None], None, cache)[0][:, -1])
        return torch.cat(logits).log_softmax(-1)

    def state_logprobs(self, logprobs: Tensor) -> Tensor:
        """Log-probability (M,), nats, that a policy comes to each state."""
        reached = [logprobs.new_zeros(1)]
        for before, level in zip(self._levels, self._levels[1:], strict=False):
            state, token = self._came[:, level]
            reached.append(reached[-1][state - before.start] + logprobs[state, token])
        return torch.cat(reached)

    def seq_logprobs(self, logprobs: Tensor) -> Tensor:
        """Log-probability (N,), nats, of each completion under a policy."""
        return (self.state_logprobs(logprobs)[:, None] + logprobs)[self._ends]

    # Values: the Bellman equations, solved from the longest states to the empty one.

    def evaluate(self, logprobs: Tensor, rewards: Tensor) -> Values:
        """V and Q of a policy: V(s) = sum_a pi(a|s) Q(s, a).

        logprobs, rewards: tables (M, V). Gradients flow to both: those of values[0]
        are the exact policy gradient.
        """
        probs = logprobs.exp()
        return self._solve(rewards, lambda q, level: (probs[level] * q).sum(-1))

    def optimum(self, rewards: Tensor) -> Values:
        """V* and Q*: V*(s) = max_a Q*(s, a). Source: Bellman 1957."""
        return self._solve(rewards, lambda q, level: q.amax(-1))

    def soft_optimum(
        self, rewards: Tensor, ref_logprobs: Tensor, beta: float
    ) -> tuple[Values, Tensor]:
        """The best of reward minus beta times the KL to a reference, and who gets it.

        V*(s) = beta log sum_a pi_ref(a|s) exp(Q*(s, a) / beta), and
        pi*(a|s) = pi_ref(a|s) exp(A*(s, a) / beta): its log-probs (M, V) come second.
        Source: Ziebart 2010; for tokens, Rafailov et al. 2024.
        """
        if not beta > 0:
            raise ValueError(f"beta={beta!r}: give a number above 0")
        best = self._solve(
            rewards,
            lambda q, level: beta * (ref_logprobs[level] + q / beta).logsumexp(-1),
        )
        return best, ref_logprobs + best.advantages / beta

    def _solve(self, rewards: Tensor, value: Callable[[Tensor, slice], Tensor]):
        if rewards.shape != self.child.shape:
            raise ValueError(
                f"rewards of shape {tuple(rewards.shape)}: give a table (M, V) = "
                f"{tuple(self.child.shape)}, see `Tree.table`"
            )
        values, q_values, after = [], [], rewards.new_zeros(0)
        for level in reversed(self._levels):
            # The last entry is for what has ended: nothing follows.
            child = (self.child[level] - level.stop).clamp(min=-1)
            q = rewards[level] + F.pad(after, (0, 1))[child]
            after = value(q, level)
            values.append(after)
            q_values.append(q)
        return Values(torch.cat(values[::-1]), torch.cat(q_values[::-1]))

    # Bookkeeping.

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor]:
        """The last state and the last token of each completion, (N,) each."""
        return (self.child == ENDED).nonzero(as_tuple=True)

    @cached_property
    def _came(self) -> Tensor:
        """The state before each state, and the token that led from there: (2, M)."""
        return F.pad((self.child != ENDED).nonzero().T, (1, 0))

    @cached_property
    def _levels(self) -> list[slice]:
        """The states of 0, 1, 2, ... tokens."""
        counts = Counter(map(len, self.states)).values()
        stops = list(accumulate(counts))
        return [slice(b - n, b) for n, b in zip(counts, stops, strict=True)]

    @cached_property
    def _paths(self) -> Tensor:
        """The states on the way to each state, itself included; then -1: (M, T)."""
        paths = torch.full((len(self.states), len(self._levels)), -1)
        for depth, level in enumerate(self._levels):
            paths[level] = paths[self._came[0, level]]
            paths[level, depth] = torch.arange(level.start, level.stop)
        return paths


def enumerate_completions(
    vocab_size: int,
    max_length: int,
    eos_id: int,
    ends: Callable[[tuple[int, ...]], bool] | None = None,
) -> Tree:
    """Every completion that stops at the end token, or after `max_length` tokens.

    ends  says of the ids written so far, the last one new, whether the episode is
          over; asked where it is not over anyway. None: it is not.
    Raises ValueError for arguments that leave nothing to choose, or too much.
    """
    if vocab_size < 2 or max_length < 1 or not 0 <= eos_id < vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size!r}, max_length={max_length!r}, eos_id={eos_id!r}: "
            "give at least 2 tokens, a length of at least 1, and one of the ids"
        )

    def going_on(state: tuple[int, ...]) -> list[int]:
        if len(state) + 1 == max_length:
            return []
        tokens = (token for token in range(vocab_size) if token != eos_id)
        return [t for t in tokens if ends is None or not ends((*state, t))]

    states, child = _grow(vocab_size, going_on)
    return Tree(states, child, torch.zeros(child.shape, dtype=torch.bool))


def enumerate_texts(texts: Iterable[Sequence[int]], vocab_size: int) -> Tree:
    """Every completion that follows one of the texts, or leaves them all.

    texts  ids, each with its end token. The episode ends with a text, or with the
           first token after which no text goes on: `outside` marks those tokens.
    For the stories of a small world, -1.0 * outside is the validity reward.
    Raises ValueError if there are no texts, one is the beginning of another, or an
    id is outside the vocabulary.
    """
    following: dict[tuple[int, ...], set[int]] = defaultdict(set)
    whole = {tuple(map(index, text)) for text in texts}
    for text in whole:
        for t, token in enumerate(text):
            following[text[:t]].add(token)
    if not following or not whole.isdisjoint(following):
        raise ValueError(
            "no texts, or one of them is the beginning of another: give texts with "
            "their end token"
        )
    used = set().union(*following.values())
    if not 0 <= min(used) <= max(used) < vocab_size:
        raise ValueError(
            f"ids from {min(used)} to {max(used)}: they go from 0 to {vocab_size - 1}"
        )
    states, child = _grow(
        vocab_size, lambda s: sorted(t for t in following[s] if (*s, t) in following)
    )
    outside = torch.ones(child.shape, dtype=torch.bool)
    for row, state in zip(outside, states, strict=True):
        row[list(following[state])] = False
    return Tree(states, child, outside)


def _grow(
    vocab_size: int, going_on: Callable[[tuple[int, ...]], Iterable[int]]
) -> tuple[list[tuple[int, ...]], Tensor]:
    """States and children, where `going_on` gives the tokens that end nothing."""
    states: list[tuple[int, ...]] = [()]
    rows = []
    for state in states:  # grows on the way
        row = [ENDED] * vocab_size
        for token in going_on(state):
            row[token] = len(states)
            states.append((*state, token))
        if len(states) * vocab_size > MOST_ENTRIES:
            raise ValueError(
                f"more than {MOST_ENTRIES:,} tokens in states: take fewer tokens, or "
                "shorter texts"
            )
        rows.append(row)
    return states, torch.tensor(rows)


# Distributions, given as log-probs over the last dimension: `logprobs` (M, V) for each
# state, or `seq_logprobs` (N,) for whole completions.


def divergence(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """KL(pi, pi_ref) = sum pi (log pi - log pi_ref), nats; log-probs may be -inf."""
    log_ratio = torch.where(logprobs > -inf, logprobs - ref_logprobs, 0.0)
    return (logprobs.exp() * log_ratio).sum(-1)


def entropy(logprobs: Tensor) -> Tensor:
    """Entropy -sum pi log pi, nats; log-probs may be -inf."""
    return -divergence(logprobs, torch.zeros_like(logprobs))


def greedy(q_values: Tensor) -> Tensor:
    """Log-probs of always taking the best token, the first of several: 0 and -inf."""
    best = q_values.argmax(-1, keepdim=True)
    return torch.full_like(q_values, -inf).scatter(-1, best, 0.0)


# Gradients.


class Moments(NamedTuple):
    """A random gradient g: its mean E g, (K,), and variance E |g - E g|^2."""

    mean: Tensor
    variance: float


def gradient(scalar: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """The gradient of a scalar, flat, (K,); the graph is kept for others."""
    parts = torch.autograd.grad(
        scalar, list(parameters), retain_graph=True, materialize_grads=True
    )
    return torch.cat([part.flatten() for part in parts])


def jacobian(table: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """The gradient of each entry of a table: (M V, K)."""
    parameters = list(parameters)
    return torch.stack([gradient(entry, parameters) for entry in table.flatten()])


def gradient_moments(
    tree: Tree,
    logprobs: Tensor,
    score: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    group_size: int = 1,
) -> Moments:
    """What the gradient of a loss is on average, over all groups that could be drawn.

    logprobs    (M, V), the policy that draws and is differentiated
    score       (M V, K), its gradients: `jacobian(logprobs, parameters)`
    loss        called for each group as loss(rows, logprobs): the numbers (G,) of its
                completions, and their log-probs (G, T); returns a scalar. Close over
                rewards and masks: `rewards[rows]`, `mask[rows]`
    group_size  G completions, drawn independently; the loss must not depend on
                their order, as each set is tried once and counted by its orders
    Raises ValueError if there are too many groups.
    """
    count = comb(len(tree) + group_size - 1, group_size)
    if group_size < 1 or count > MOST_GROUPS:
        raise ValueError(
            f"group_size={group_size!r} with {len(tree)} completions makes {count:,} "
            f"groups: give at least 1, and at most {MOST_GROUPS:,} groups"
        )
    seq_logprobs = tree.seq_logprobs(logprobs).detach()
    sampled = tree.along(logprobs.detach())
    entries = tree.completion_states * logprobs.shape[1] + tree.completion_ids
    probs = sampled.new_zeros(count)
    weights = sampled.new_zeros(count, logprobs.numel())  # on the log-probs' gradients
    groups = combinations_with_replacement(range(len(tree)), group_size)
    for i, group in enumerate(groups):
        rows = torch.tensor(group)
        inputs = sampled[rows].requires_grad_()
        (weight,) = torch.autograd.grad(loss(rows, inputs), inputs)
        weight = weight * tree.completion_mask[rows]
        weights[i].index_add_(0, entries[rows].flatten(), weight.flatten())
        orders = factorial(group_size) / prod(map(factorial, Counter(group).values()))
        probs[i] = orders * seq_logprobs[rows].sum().exp()
    mean = probs @ weights @ score
    squares = (weights @ (score @ score.T) * weights).sum(-1)
    return Moments(mean, float(probs @ squares - mean.square().sum()))
