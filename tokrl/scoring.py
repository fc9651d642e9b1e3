"""How likely a model finds given tokens: what losses and references are made of."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokrl.masking import zero_masked
from tokrl.models import LanguageModel, ValueModel
from tokrl.sampling import distinct_prompts

# Completions are scored so many rows together, and so many columns more at a time:
# sizes come again, and matrix libraries prepare themselves for each new one.
ROWS, COLUMNS = 8, 8


def completion_logits(
    model: LanguageModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
) -> Tensor:
    """The logits (B, T, V) from which each completion token was to be chosen.

    prompt_ids, prompt_mask (B, S) left-padded; completion_ids, completion_mask
    (B, T) right-padded.
    """
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
    """

    def read(logits: Tensor, ids: Tensor) -> tuple[Tensor]:
        logprobs = torch.log_softmax(logits / temperature, -1)
        return (_of_tokens(logprobs, ids),)

    (logprobs,) = _read_completions(
        read, model, _logits_of(model), prompt_ids, prompt_mask, completion_ids,
        completion_mask,
    )  # fmt: skip
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
    """

    def read(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = torch.log_softmax(logits / temperature, -1)
        kept = logprobs if entropy_grad else logprobs.detach()
        return _of_tokens(logprobs, ids), _spread(kept)

    logprobs, spread = _read_completions(
        read, model, _logits_of(model), prompt_ids, prompt_mask, completion_ids,
        completion_mask,
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
    """
    (values,) = _read_completions(
        lambda values, _: (values,), critic, critic.values, prompt_ids, prompt_mask,
        completion_ids, completion_mask,
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


def _logits_of(model: LanguageModel) -> Callable[..., Tensor]:
    return lambda *given: model(*given)[0]


def _of_tokens(logprobs: Tensor, ids: Tensor) -> Tensor:
    """Those of ids (...) among all log-probs (..., V)."""
    return logprobs.gather(-1, ids[..., None])[..., 0]


def _spread(logprobs: Tensor) -> Tensor:
    """Entropy of normalised log-probs; a probability of 0 adds nothing."""
    finite = logprobs.clamp(min=torch.finfo(logprobs.dtype).min)
    return -(logprobs.exp() * finite).sum(-1)


def _read_completions(
    read: Callable[..., Sequence[Tensor]],
    model: LanguageModel,
    outputs: Callable[[Tensor, Tensor | None, Any], Tensor],
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
) -> list[Tensor]:
    """What `read` makes of a model's outputs at completion tokens, a part at a time.

    read     takes the outputs (b, n, ...) that stand before tokens, and the ids (b, n)
             of these; gives matrices (b, n)
    outputs  takes ids, mask and a cache of the model; gives (b, n, ...)
    Returns these matrices for the whole batch, (B, T), 0 where masked. The outputs
    are those of one pass over all, for less work: equal prompts are read once, and
    completions with others of like length, so that little of it is padding.
    """
    size = completion_ids.shape[1]
    place = torch.arange(1, size + 1, device=completion_mask.device)
    lengths = (completion_mask * place).amax(-1)
    lengths, order = lengths.sort(descending=True, stable=True)
    prompts, masks, of = distinct_prompts(prompt_ids, prompt_mask)
    cache = model.new_cache(len(prompts), prompt_ids.shape[1] + size - 1)
    first = outputs(prompts, masks, cache)[:, -1:]  # (P, 1, ...): before first tokens
    parts = []
    for part, columns in _alike(lengths.tolist(), size):
        rows = order[part]
        ids = completion_ids[rows, :columns]
        found = [read(first[of[rows]], ids[:, :1])]
        if columns > 1:
            own = copy.copy(cache)
            own.keep(of[rows])
            found.append(read(outputs(ids[:, :-1], None, own), ids[:, 1:]))
        joined = [torch.cat(matrices, 1) for matrices in zip(*found, strict=True)]
        parts.append([F.pad(matrix, (0, size - columns)) for matrix in joined])
    back = order.argsort()
    whole = [torch.cat(matrices)[back] for matrices in zip(*parts, strict=True)]
    return [zero_masked(matrix, completion_mask) for matrix in whole]


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
