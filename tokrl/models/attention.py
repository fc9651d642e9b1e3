"""Attention, and the keys and values that it remembers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# So many texts that begin alike lie side by side while tokens are drawn, if they can be
# divided so: what they share is read once, but each passes over what others added.
SIDE_BY_SIDE = (8, 4, 2)


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

    Where no gradient is asked for they are written into memory that is taken once, and
    texts that begin alike lie side by side in one row, after the beginning they share.

    keys, values  one tensor (R, heads, N, D / heads) for each layer, N >= columns
    texts         side by side in each row: text b is number b % texts of row b // texts
    shared        columns at the start of a row that all its texts share; after them
                  comes a column for each text's next token, one for each text's
                  second, and so on
    length        tokens that a text has in the cache, padding and what it shares too
    mask          bool, true where a real token was read; None if all were. (B, length);
                  or (R, shared) with several texts in a row, whose own tokens are real
    bias          what attention adds to the scores of texts that lie side by side:
                  (texts, N), or (R, 1, texts, N) if there is padding; else None
    size          tokens of a text that memory is taken for
    """

    def __init__(self, layers: int, nothing: Tensor, size: int):
        """An empty one; `nothing` is (B, heads, 0, D / heads), of type and device."""
        self.keys = [nothing] * layers
        self.values = [nothing] * layers
        self.texts = 1
        self.shared = 0
        self.length = 0
        self.mask: Tensor | None = None
        self.bias: Tensor | None = None
        self.size = size

    def keep(self, rows: Tensor) -> None:
        """Keep these texts (a long tensor of their numbers) and drop the others."""
        if self.texts > 1:
            self._apart(rows)
            return
        if not torch.is_grad_enabled() and self.length:
            self.texts, self.shared = _copies(rows), self.length
            rows = rows[:: self.texts]
        self.keys, self.values = (
            [part[:, :, : self.length].index_select(0, rows) for part in parts]
            for parts in (self.keys, self.values)
        )
        if self.mask is not None:
            self.mask = self.mask[rows]
        if self.texts > 1:
            self.bias = as_bias(self._seen(), self.keys[0])

    def _apart(self, kept: Tensor) -> None:
        """A row for each of these texts, with the beginning that it shared."""
        row, place = kept // self.texts, kept % self.texts
        own = self.length - self.shared

        def of_texts(part: Tensor) -> Tensor:
            begin, rest = part[:, :, : self._columns(self.length)].split(
                (self.shared, own * self.texts), 2
            )
            rest = rest.unflatten(2, (own, self.texts))  # (R, heads, own, texts, Dh)
            return torch.cat([begin[row], rest.movedim(3, 1)[row, place]], 2)

        self.keys, self.values = (
            [of_texts(part) for part in parts] for parts in (self.keys, self.values)
        )
        if self.mask is not None:
            self.mask = F.pad(self.mask[row], (0, own), value=True)
        self.texts, self.shared = 1, 0

    def _seen(self) -> Tensor:
        """Which columns each text of a row sees: what is shared, and its own.

        Returns bool: (texts, N), or (R, 1, texts, N) if there is padding.
        """
        text = torch.arange(self.texts, device=self.keys[0].device)
        columns = self._columns(max(self.size, self.length))
        own = text.repeat((columns - self.shared) // self.texts)
        seen = F.pad(text[:, None] == own, (self.shared, 0), value=True)
        if self.mask is None:
            return seen
        return seen & F.pad(self.mask, (0, len(own)), value=True)[:, None, None, :]

    def _columns(self, length: int) -> int:
        """How many columns of a row texts of so many tokens take."""
        return self.shared + self.texts * (length - self.shared)

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

    def next_bias(self) -> Tensor:
        """What attention adds to the scores of the next token of each text."""
        columns = self._columns(self.length + 1)
        if columns > self.bias.shape[-1]:  # longer than was expected
            self.size = 2 * self.length
            self.bias = as_bias(self._seen(), self.keys[0])
        return self.bias[..., :columns]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (R, heads, T, Dh) of new tokens; returns those of all."""
        start = self._columns(self.length)
        end = start + k.shape[2]
        for parts, new in ((self.keys, k), (self.values, v)):
            if torch.is_grad_enabled():
                parts[layer] = torch.cat([parts[layer][:, :, :start], new], 2)
                continue
            if end > parts[layer].shape[2]:  # at first, and after rows were dropped
                batch, heads, _, width = new.shape
                size = max(end, self._columns(self.size))
                room = new.new_empty(batch, heads, size, width)
                room[:, :, :start] = parts[layer][:, :, :start]
                parts[layer] = room
            parts[layer][:, :, start:end] = new
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


def _copies(rows: Tensor) -> int:
    """How many texts may lie side by side if each row is kept as often as in `rows`."""
    for texts in SIDE_BY_SIDE:
        if len(rows) and len(rows) % texts == 0:
            together = rows.view(-1, texts)
            if bool((together == together[:, :1]).all()):
                return texts
    return 1
