"""Calling a reward, and never believing what it returns before looking at it."""

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokrl.masking import length_mask
from tokrl.tokenizers import BOS

Reward = Callable[..., list]
Judgement = float | list[float]
"""Of one completion: its number, or a number for each of its tokens that counts."""


class RewardError(ValueError):
    """A reward that failed, or returned what is none; the message names it."""


def judge(
    reward: Reward,
    prompts: Sequence[str],
    completions: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    device: torch.device | None = None,
    **columns: Any,
) -> list[Judgement]:
    """Call a reward and check what it returns.

    device  where its tensors must be; None: anywhere
    Returns for each completion a float (a sequence reward), or a list of floats (a
    token reward) that is shorter than the completion where the reward ended the
    episode with None. A reward may return them as lists, tensors or NumPy arrays.
    Raises RewardError that names the reward, the index and the prompt if it returns
    the wrong number of values, a value that is not a finite number, None for all
    tokens of a completion, an array with too many axes or a tensor on another
    device; if the reward itself raises, its error is the cause.
    """
    name = getattr(reward, "__name__", type(reward).__name__)
    count = len(completion_ids)
    try:
        returned = reward(  # copies: it may change them, they are read again
            prompts=list(prompts),
            completions=list(completions),
            completion_ids=[list(ids) for ids in completion_ids],
            **columns,
        )
        listable = isinstance(returned, Iterable) and not isinstance(
            returned, (str, bytes, dict, set)
        )
        rows = list(returned) if listable else None
    except RewardError:
        raise  # from a reward inside this one: it says all that is to be said
    except Exception as error:
        raise RewardError(
            f"reward {name!r} raised {type(error).__name__} on {count} completions: "
            f"{error}"
        ) from error
    if rows is None:
        raise RewardError(
            f"reward {name!r} returned a {type(returned).__name__} for {count} "
            "completions: return a list, one entry for each"
        )
    if len(rows) != count:
        raise RewardError(
            f"reward {name!r} returned {len(rows)} values for {count} completions: "
            "return one for each"
        )
    judgements = []
    for i, (row, ids) in enumerate(zip(rows, completion_ids, strict=True)):
        try:
            judgements.append(_judgement(row, len(ids), device))
        except ValueError as error:
            where = f"reward {name!r}, completion {i} of prompt {prompts[i]!r}"
            raise RewardError(f"{where}: {error}") from None
    return judgements


def _judgement(row: Any, length: int, device: torch.device | None) -> Judgement:
    """What a reward returned for one completion, checked; ValueError says why not."""
    row = _plain(row, device)
    if not isinstance(row, (list, tuple)):
        if row is None or not length:
            raise ValueError("no token is judged: give a number for at least the first")
        return _number(row)
    if len(row) != length:
        raise ValueError(f"{len(row)} token rewards for {length} tokens")
    values = [_plain(value, device) for value in row]
    judged = next((t for t, value in enumerate(values) if value is None), length)
    if not judged:
        raise ValueError("no token is judged: give a number for at least the first")
    if any(value is not None for value in values[judged:]):
        raise ValueError("a number after None, which ends the episode")
    return [_number(value, f"token {t} ") for t, value in enumerate(values[:judged])]


def _plain(value: Any, device: torch.device | None) -> Any:
    """Tensors and arrays as lists and numbers; anything else as it is."""
    if not isinstance(value, (Tensor, np.ndarray, np.generic)):
        return value
    if isinstance(value, Tensor) and device is not None and value.device != device:
        raise ValueError(
            f"a tensor on {value.device}, but the completions are on {device}: return "
            "numbers, or a tensor there"
        )
    if value.ndim > 1:
        raise ValueError(
            f"an array of shape {tuple(value.shape)}: give one number, or one axis "
            "with a number for each token"
        )
    return value.tolist()


def _number(value: Any, what: str = "") -> float:
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{what}got {value!r}, not a finite number")
    return float(value)


def on_tokens(judgement: Judgement, length: int) -> list[float]:
    """A judgement as one number per token: a sequence's is paid on its last token."""
    if isinstance(judgement, list):
        return judgement
    return [0.0] * (length - 1) + [judgement]


def token_reward_matrix(
    reward: Reward,
    prompts: Sequence[str],
    completions: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    completion_mask: Tensor,
    **columns: Any,
) -> tuple[Tensor, Tensor]:
    """Call a reward and lay its numbers over the tokens.

    A sequence reward is paid on the last token. Returns token_rewards (B, T), on the
    device of `completion_mask` and in torch's default type, and the mask (B, T) of
    the tokens that count: `completion_mask` without the tokens that the reward did
    not judge.
    Raises RewardError, a ValueError, as `judge` does.
    """
    judgements = judge(
        reward, prompts, completions, completion_ids, completion_mask.device, **columns
    )
    rows = [
        on_tokens(judgement, len(ids))
        for judgement, ids in zip(judgements, completion_ids, strict=True)
    ]
    size = completion_mask.shape[1]
    filled = torch.tensor([row + [0.0] * (size - len(row)) for row in rows])
    token_rewards = filled.view(completion_mask.shape)  # also if there are no rows
    judged = length_mask(torch.tensor([len(row) for row in rows]), size)
    mask = completion_mask * judged.to(completion_mask)
    return token_rewards.to(completion_mask.device), mask


def as_sequence_reward(reward: Reward) -> Reward:
    """A token reward as the sequence reward that TRL's trainers expect.

    It pays each completion the sum of its token rewards, and keeps the name under
    which TRL logs it. TRL then gives that sum to every token alike. A model that was
    trained with `<bos>` before each text, as ours are, should find it there: TRL sets
    none, so write it before your prompts; the reward is judged without it.
    """

    def summed(prompts, completions, completion_ids, **columns) -> list[float]:
        prompts = [prompt.removeprefix(BOS) for prompt in prompts]
        judgements = judge(reward, prompts, completions, completion_ids, **columns)
        return [math.fsum(j) if isinstance(j, list) else j for j in judgements]

    summed.__name__ = getattr(reward, "__name__", type(reward).__name__)
    return summed
