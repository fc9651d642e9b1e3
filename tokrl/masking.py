"""Rows of different lengths in one rectangle: padding, masks, masked averages."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def pad(
    rows: Sequence[Sequence[int]], pad_id: int = 0, side: str = "left"
) -> tuple[Tensor, Tensor]:
    """Lists of ids as one rectangle and its mask.

    Returns ids and mask, both (B, L) int64 with L the longest row; the mask is 1 on
    ids and 0 on padding. Prompts are padded on the left, so that completions start
    in one column; completions on the right.
    Raises ValueError for no rows or an unknown side.
    """
    if not rows:
        raise ValueError("no rows to pad: give at least one list of ids")
    if side not in ("left", "right"):
        raise ValueError(f"side={side!r}: give 'left' or 'right'")
    lengths = [len(row) for row in rows]
    size = max(lengths)
    filling = [[pad_id] * (size - length) for length in lengths]
    sides = (filling, rows) if side == "left" else (rows, filling)
    joined = [[*first, *then] for first, then in zip(*sides, strict=True)]
    ids = torch.tensor(joined, dtype=torch.int64)
    mask = length_mask(torch.tensor(lengths), size)
    if side == "left":
        mask = mask.flip(-1)
    return ids, mask


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Mask (B, size) int64 with ones on the first `lengths[i]` columns of row i."""
    return (torch.arange(size) < lengths[:, None]).long()


def unpad(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """The rows (B, L) without their padding, as lists."""
    return [
        [token for token, keep in zip(row, kept, strict=True) if keep]
        for row, kept in zip(ids.tolist(), mask.tolist(), strict=True)
    ]


def require_shape(mask: Tensor, **matrices: Tensor) -> None:
    """Raise ValueError, which names the matrix, unless all are shaped as the mask.

    Without it a vector that was meant as a column would be read as a row, silently.
    """
    for name, matrix in matrices.items():
        if matrix.shape != mask.shape:
            raise ValueError(
                f"{name} has shape {tuple(matrix.shape)}, the mask "
                f"{tuple(mask.shape)}: they must be equal"
            )


def require_prompts(ids: Tensor, mask: Tensor, model: Any) -> None:
    """Raise ValueError unless a model can go on from prompts (B, S), left-padded.

    What follows the last column continues it: padding there would be continued.
    """
    if ids.dim() != 2 or not ids.numel():
        raise ValueError(
            f"prompt_ids has shape {tuple(ids.shape)}: give (B, S), at least one row "
            "with at least one token, such as <bos>"
        )
    require_shape(mask, prompt_ids=ids)
    ended = mask[:, -1] == 0
    if ended.any():
        raise ValueError(
            f"prompt_mask is 0 in the last column of row {int(ended.nonzero()[0])}: "
            "pad prompts on the left, `pad(rows, side='left')`"
        )
    require_known(ids, model)


def require_known(ids: Tensor, model: Any) -> None:
    """Raise ValueError if a token is beyond a model's vocabulary, if it has one."""
    size = getattr(model, "vocab_size", None)
    if size is not None and ids.numel() and (largest := int(ids.max())) >= size:
        raise ValueError(
            f"token {largest}, but the model knows {size} tokens, from 0: it was made "
            "for another tokenizer"
        )


def zero_masked(values: Tensor, mask: Tensor) -> Tensor:
    """`values` where `mask` is 1, else 0; what stood there, NaN too, leaves no trace.

    Nor does it in the gradient, which `values * mask` would turn into NaN.
    """
    return torch.where(mask.bool(), values, torch.zeros_like(values))


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of `values` where `mask` is 1; masked values may be anything, NaN too."""
    kept = zero_masked(values, mask)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of `values` where `mask` is 1; 0 where nothing is unmasked."""
    count = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(values, mask, dim) / count.clamp(min=1)


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Values with mean 0 and variance 1 over the unmasked ones; 0 where masked.

    (v - mean) / sqrt(variance + 1e-8), the variance with Bessel's correction. With
    shift_mean=False the mean is put back: only the scale changes.
    Values that are all equal become exactly 0 (or their mean): rounding would leave
    a rest, and the division magnify it ten thousand times.
    """
    mean = masked_mean(values, mask)
    centred = values - mean
    kept = values[mask.bool()]
    if kept.numel() and kept.min() == kept.max():
        centred = torch.zeros_like(values)
    variance = masked_sum(centred.square(), mask) / (mask.sum() - 1).clamp(min=1)
    whitened = centred * torch.rsqrt(variance + 1e-8)
    return zero_masked(whitened if shift_mean else whitened + mean, mask)
