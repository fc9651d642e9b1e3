"""How likely a model finds given tokens: what losses and references are made of."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokrl.masking import (
    require_known,
    require_prompts,
    require_shape,
    zero_masked,
)
from tokrl.models import LanguageModel, ValueModel
from tokrl.sampling import check_choice, distinct_prompts

# Completions are scored so many rows together, and so many columns more at a time:
# sizes come again, and matrix libraries prepare themselves for each new one.
ROWS, COLUMNS = 8, 8
# Or side by side: so many tokens after a prompt, unless one completion has more.
PACK = 80
# What costs about as much as to read a token: so many pairs of tokens in attention; and
# to read so many tokens costs about as much as to begin a pass of the model.
PAIRS, PASS = 128, 256


def completion_logits(
    model: LanguageModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
) -> Tensor:
    """The logits (B, T, V) from which each completion token was to be chosen.

    prompt_ids, prompt_mask (B, S) left-padded; completion_ids, completion_mask
    (B, T) right-padded. Raises ValueError as `token_logprobs` does.
    """
    _check(model, prompt_ids, prompt_mask, completion_ids, completion_mask)
    ids = torch.cat([prompt_ids, completion_ids], -1)
    # No token reads what follows it: only padding on the left matters.
    mask = torch.cat([prompt_mask, torch.ones_like(completion_mask)], -1)
    logits, _ = model(ids, mask)
    return logits[:, prompt_ids.shape[1] - 1 : -1]


def token_logprobs(
    model: LanguageModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """Log-probs (B, T), nats, of the completion tokens; 0 where masked.

    They are taken under softmax(logits / temperature): give the temperature at
    which the tokens were sampled. Gradients flow to the model.
    Raises ValueError for a temperature that is not above 0, shapes that do not fit,
    prompts padded on the right, or tokens that the model does not know.
    """
    logprobs, _ = token_logprobs_and_entropy(
        model, prompt_ids, prompt_mask, completion_ids, completion_mask, temperature
    )
    return logprobs


def token_logprobs_and_entropy(
    model: LanguageModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    temperature: float = 1.0,
    entropy_grad: bool = False,
) -> tuple[Tensor, Tensor]:
    """`token_logprobs`, and from the same pass the entropy before each token.

    entropy_grad  whether gradients flow through the entropy as well, which keeps
                  another (B, T, V) in memory
    Returns two matrices (B, T), nats, 0 where masked. The entropy is that of all that
    could have been chosen, under softmax(logits / temperature).
    Raises ValueError as `token_logprobs` does.
    """
    check_choice(temperature)

    def read(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        scaled = logits if temperature == 1 else logits / temperature
        if not entropy_grad:
            return _Chosen.apply(scaled, ids)
        logprobs = torch.log_softmax(scaled, -1)
        return logprobs.gather(-1, ids[..., None])[..., 0], _spread(logprobs)

    logprobs, spread = _read_completions(
        read, model, _logits_of(model), getattr(model, "head", None), prompt_ids,
        prompt_mask, completion_ids, completion_mask,
    )  # fmt: skip
    return logprobs, spread


def token_values(
    critic: ValueModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
) -> Tensor:
    """V(s_t) (B, T) of the states before the completion tokens; 0 where masked.

    In units of the reward. Gradients flow to the critic.
    Raises ValueError as `token_logprobs` does.
    """
    (values,) = _read_completions(
        lambda values, _: (values,), critic, critic.values, critic.value_head,
        prompt_ids, prompt_mask, completion_ids, completion_mask,
    )  # fmt: skip
    return values


def entropy(logits: Tensor) -> Tensor:
    """Entropy, nats, of softmax(logits) over the last dimension.

    A logit of minus infinity is a token that is never drawn.
    """
    return _spread(torch.log_softmax(logits, -1))


def token_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL(pi, pi_ref), nats, of the whole distributions, not from a sampled token.

    sum_v p_v (log p_v - log q_v), with p = softmax(logits), q = softmax(ref_logits)
    over the last dimension: give logits or log-probs, (..., V), at the temperature
    that is meant. Terms with p_v = 0 are 0; where only q_v is 0 the KL is infinite.
    Returns (...). Gradients flow to both.
    """
    logprobs = torch.log_softmax(logits, -1)
    ref_logprobs = torch.log_softmax(ref_logits, -1)
    possible = logprobs > -math.inf
    ratio = torch.where(possible, logprobs - ref_logprobs, 0.0)
    return (logprobs.exp() * ratio).sum(-1)


def _check(
    model: LanguageModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
) -> None:
    """ValueError for what cannot be scored."""
    require_prompts(prompt_ids, prompt_mask, model)
    require_shape(completion_mask, completion_ids=completion_ids)
    if len(prompt_ids) != len(completion_ids) or not completion_ids.numel():
        raise ValueError(
            f"prompts of shape {tuple(prompt_ids.shape)}, completions of shape "
            f"{tuple(completion_ids.shape)}: give (B, S) and (B, T), a prompt for each "
            "completion, and at least one token"
        )
    require_known(completion_ids, model)


def _logits_of(model: LanguageModel) -> Callable[..., Tensor]:
    return lambda *given: model(*given)[0]


class _Chosen(torch.autograd.Function):
    """Log-probs (...) of ids (...) under softmax(logits (..., V)), and the entropies.

    Both from one softmax, whose result serves the gradient as well; of the entropies
    no gradient is taken.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = torch.log_softmax(logits, -1)
        chosen = logprobs.gather(-1, ids[..., None])[..., 0]
        probs = logprobs.exp()
        ctx.save_for_backward(probs, ids)
        # A probability of 0 adds nothing, where its log is minus infinity.
        finite = logprobs.clamp_(min=torch.finfo(logprobs.dtype).min)
        spread = -torch.linalg.vecdot(probs, finite)
        ctx.mark_non_differentiable(spread)
        return chosen, spread

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor, _) -> tuple[Tensor, None]:
        probs, ids = ctx.saved_tensors
        of_logits = probs * -grad[..., None]
        of_logits.scatter_add_(-1, ids[..., None], grad[..., None])
        return of_logits, None


def _spread(logprobs: Tensor) -> Tensor:
    """Entropy of normalised log-probs; a probability of 0 adds nothing."""
    finite = logprobs.clamp(min=torch.finfo(logprobs.dtype).min)
    return -(logprobs.exp() * finite).sum(-1)


def _read_completions(
    read: Callable[..., Sequence[Tensor]],
    model: LanguageModel,
    outputs: Callable[[Tensor, Tensor | None, Any], Tensor],
    head: Callable[[Tensor], Tensor] | None,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
) -> list[Tensor]:
    """What `read` makes of a model's outputs at completion tokens, a part at a time.

    read     takes the outputs (b, n, ...) that stand before tokens, and the ids (b, n)
             of these; gives matrices (b, n)
    outputs  takes ids, mask and a cache of the model; gives (b, n, ...)
    head     makes such outputs of hidden states
    Returns these matrices for the whole batch, (B, T), 0 where masked. The outputs
    are those of one pass over all, for less work: equal prompts are read once, and
    completions with others of like length, so that little of it is padding; or, where
    lengths differ so much that this would take many passes, side by side in one row.
    """
    _check(model, prompt_ids, prompt_mask, completion_ids, completion_mask)
    size = completion_ids.shape[1]
    place = torch.arange(1, size + 1, device=completion_mask.device)
    lengths = (completion_mask * place).amax(-1)
    prompts, masks, of = distinct_prompts(prompt_ids, prompt_mask)
    falling, order = lengths.sort(descending=True, stable=True)
    parts = list(_alike(falling.tolist(), size))
    if getattr(model, "hidden_packed", None) is not None and len(parts) > 1:
        packs = Packs(prompts, masks, of, completion_ids, lengths)
        if packs.cost < _cost(prompts.shape, parts, falling):
            states = model.hidden_packed(packs.ids, packs.positions, packs.seen)
            found = read(*packs.before_tokens(head, states))
            return [
                zero_masked(packs.on_tokens(matrix), completion_mask)
                for matrix in found
            ]
    cache = model.new_cache(len(prompts), prompt_ids.shape[1] + size - 1)
    first = outputs(prompts, masks, cache)[:, -1:]  # (P, 1, ...): before first tokens
    matrices = []
    for part, columns in parts:
        rows = order[part]
        ids = completion_ids[rows, :columns]
        found = [read(first[of[rows]], ids[:, :1])]
        if columns > 1:
            own = copy.copy(cache)
            own.keep(of[rows])
            found.append(read(outputs(ids[:, :-1], None, own), ids[:, 1:]))
        joined = [torch.cat(pair, 1) for pair in zip(*found, strict=True)]
        matrices.append([F.pad(matrix, (0, size - columns)) for matrix in joined])
    back = order.argsort()
    whole = [torch.cat(column)[back] for column in zip(*matrices, strict=True)]
    return [zero_masked(matrix, completion_mask) for matrix in whole]


class Packs:
    """Completions side by side in rows, each row after the prompt that they share.

    prompts, masks  (P, S), left-padded; `of` (B,) is the number of each one's prompt
    completion_ids  (B, T); lengths (B,), 0 where nothing counts

    ids, positions  (R, L): the tokens of a row, and the place of each in its own text
    seen            (R, L, L) bool: a token sees the prompt, what stands before it in
                    its own completion, and itself
    The last token of a completion is left out: nothing is said after it.
    """

    def __init__(
        self,
        prompts: Tensor,
        masks: Tensor,
        of: Tensor,
        completion_ids: Tensor,
        lengths: Tensor,
    ):
        sizes = masks.sum(-1).tolist()
        read = (lengths - 1).clamp(min=0).tolist()
        room = max(PACK, *read)
        rows: list[int] = []  # the prompt of each row
        used: list[int] = []  # tokens in each row
        open_row: dict[int, int] = {}
        where = []  # of each completion: its row, and where it starts there
        for prompt, count in zip(of.tolist(), read, strict=True):
            row = open_row.get(prompt)
            if row is None or used[row] - sizes[prompt] + count > room:
                row = open_row[prompt] = len(rows)
                rows.append(prompt)
                used.append(sizes[prompt])
            where.append((row, used[row]))
            used[row] += count
        length = COLUMNS * math.ceil(max(used) / COLUMNS)
        device = completion_ids.device
        self.ids = torch.zeros(len(rows), length, dtype=torch.int64, device=device)
        self.positions = torch.zeros_like(self.ids)
        text = torch.full_like(self.ids, -1)  # 0 the prompt, then 1, 2, ...; -1 nothing
        for row, prompt in enumerate(rows):
            size = sizes[prompt]
            self.ids[row, :size] = prompts[prompt, masks[prompt].bool()]
            self.positions[row, :size] = torch.arange(size, device=device)
            text[row, :size] = 0
        at = torch.tensor(where, device=device)  # (B, 2)
        step = torch.arange(completion_ids.shape[1], device=device)
        counted = step < lengths[:, None] - 1
        row, start = at[:, :1], at[:, 1:]
        flat = (row * length + start + step)[counted]
        begin = masks.sum(-1)[of][:, None]  # tokens of the prompt
        number = torch.arange(1, len(where) + 1, device=device)[:, None]
        self.ids.view(-1)[flat] = completion_ids[counted]
        self.positions.view(-1)[flat] = (begin + step)[counted]
        text.view(-1)[flat] = number.expand_as(counted)[counted]
        self.cost = self.ids.numel() * (1 + length / PAIRS)
        self._text = text
        self.counted = step < lengths[:, None]  # (B, T)
        before = row * length + torch.where(step == 0, begin, start + step) - 1
        self._before = before[self.counted]  # where the output before each token is
        self._tokens = completion_ids[self.counted]

    @cached_property
    def seen(self) -> Tensor:
        """Made when it is asked for: it is large, and not all packs are read."""
        back = torch.arange(self.ids.shape[1], device=self.ids.device)
        same = self._text[:, :, None] == self._text[:, None, :]
        shared = self._text[:, None, :] == 0
        return (same | shared) & (back[:, None] >= back)

    def before_tokens(
        self, head: Callable[[Tensor], Tensor], states: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Outputs (1, N, ...) before all tokens that count, and their ids (1, N)."""
        return head(states.flatten(0, 1)[self._before][None]), self._tokens[None]

    def on_tokens(self, values: Tensor) -> Tensor:
        """Values (1, N) of those tokens as a matrix (B, T), 0 elsewhere."""
        nothing = values.new_zeros(self.counted.shape)
        return nothing.masked_scatter(self.counted, values)


def _cost(
    prompts: tuple[int, int], parts: Sequence[tuple[slice, int]], lengths: Tensor
) -> float:
    """What it takes to read prompts (P, S), then completions in parts, in tokens."""
    number, size = prompts
    tokens, pairs = number * size, number * size**2
    for part, columns in parts:
        read = len(lengths[part]) * (columns - 1)
        tokens, pairs = tokens + read, pairs + read * (size + columns - 1)
    return tokens + pairs / PAIRS + PASS * len(parts)


def _alike(lengths: list[int], size: int) -> Iterator[tuple[slice, int]]:
    """Which rows to read together, given their falling lengths; and their columns.

    The first column is chosen from what the prompt said; those after it are read.
    """

    def columns(start: int) -> int:
        read = COLUMNS * math.ceil((lengths[start] - 1) / COLUMNS)
        return 1 + max(0, min(read, size - 1))

    for count, group in groupby(range(0, len(lengths), ROWS), columns):
        starts = list(group)
        yield slice(starts[0], starts[-1] + ROWS), count
