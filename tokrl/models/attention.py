"""Attention, and the keys and values that it remembers."""

import math
from typing import Any

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(Dh) + bias) v: Vaswani et al. 2017, equation 1.

    q        (B, heads, T, Dh), one query for each position
    k, v     (B, heads, N, Dh)
    bias     fits (B, heads, T, N): minus infinity for a key that a query must not see,
             0 for one that it may see; None if it may see all. No query may have all
             its keys hidden.
    Returns (B, heads, T, Dh).
    """
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)  # (B, heads, T, N)
    if bias is not None:
        scores += bias
    return scores.softmax(-1) @ v


def as_bias(seen: Tensor, like: Tensor) -> Tensor:
    """From which keys are seen, bool, to what `attention` adds to their scores."""
    return torch.zeros_like(seen, dtype=like.dtype).masked_fill_(~seen, -math.inf)


class KVCache:
    """Keys and values of the tokens read so far.

    Where no gradient is asked for they are written into memory that is taken once.

    keys, values  one tensor (B, heads, N, D / heads) for each layer, N >= length
    length        columns in use
    mask          (B, length) bool, true where a real token was read; None if all were
    size          columns that memory is taken for
    reader        what the model reads the next tokens with, one at a time
    """

    def __init__(self, layers: int, nothing: Tensor, size: int):
        """An empty one; `nothing` is (B, heads, 0, D / heads), of type and device."""
        self.keys = [nothing] * layers
        self.values = [nothing] * layers
        self.length = 0
        self.mask: Tensor | None = None
        self.size = size
        self.reader: Any = None

    def __copy__(self) -> "KVCache":
        """One that goes on by itself; it shares what was read so far."""
        other = KVCache(0, self.keys[0], self.size)
        other.length, other.mask = self.length, self.mask
        # Without room behind it: what comes next is written elsewhere.
        other.keys = [part[:, :, : self.length] for part in self.keys]
        other.values = [part[:, :, : self.length] for part in self.values]
        return other

    def keep(self, rows: Tensor) -> None:
        """Keep these rows (a long tensor of row numbers) and drop the others."""
        self.keys, self.values = (
            [self._kept(part[:, :, : self.length], rows) for part in parts]
            for parts in (self.keys, self.values)
        )
        self.reader = None
        if self.mask is not None:
            self.mask = self.mask[rows]

    def _kept(self, part: Tensor, rows: Tensor) -> Tensor:
        """These rows of keys or values so far."""
        if torch.is_grad_enabled():
            return part.index_select(0, rows)
        room = self._room(part, len(rows), self.length)
        torch.index_select(part, 0, rows, out=room[:, :, : self.length])
        return room

    def make_room(self) -> None:
        """See to it that another token fits into the memory of every layer."""
        if self.keys[0].shape[2] == self.length:
            for parts in (self.keys, self.values):
                parts[:] = [self._moved(p, p, 2 * self.length) for p in parts]

    def _moved(self, part: Tensor, like: Tensor, columns: int) -> Tensor:
        """Keys or values so far, in new memory of the type of `like`; see `_room`."""
        self.reader = None  # it knows the old memory
        room = self._room(like, len(like), columns)
        room[:, :, : self.length] = part[:, :, : self.length]
        return room

    def _room(self, like: Tensor, rows: int, columns: int) -> Tensor:
        """Memory for keys or values of so many columns, or as many as are expected."""
        _, heads, _, width = like.shape
        return like.new_empty(rows, heads, max(self.size, columns), width)

    def mark(self, length: int, mask: Tensor | None) -> Tensor | None:
        """Note which of `length` new tokens are real; returns the mask of all so far.

        mask  (B, length) bool; None if all are
        """
        if mask is None and self.mask is None:
            return None
        real = [self.mask, mask]
        for i, columns in enumerate((self.length, length)):
            if real[i] is None:
                shape = (self.keys[0].shape[0], columns)
                real[i] = torch.ones(shape, dtype=torch.bool, device=real[1 - i].device)
        self.mask = torch.cat(real, -1)
        return self.mask

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, heads, T, Dh) of new tokens; returns those of all."""
        start, end = self.length, self.length + k.shape[2]
        for parts, new in ((self.keys, k), (self.values, v)):
            if torch.is_grad_enabled():
                parts[layer] = torch.cat([parts[layer][:, :, :start], new], 2)
                continue
            if end > parts[layer].shape[2]:  # at first, or longer than was expected
                parts[layer] = self._moved(parts[layer], new, end)
            parts[layer][:, :, start:end] = new
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]
