"""What every language model of the book answers to, whatever is inside."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn


class Cache(Protocol):
    """What a model remembers of the tokens it has read, a row for each text."""

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (a long tensor of row numbers)."""


class LanguageModel(nn.Module):
    """Ids in, a score for every possible next token out.

    A subclass gives `hidden`, `head` and `new_cache`, and sets

    vocab_size  number of tokens, V
    width       size of a hidden state, D
    max_length  longest sequence in tokens; None if there is no limit

    reads_at_once  whether it reads a text's tokens together; a recurrent model reads
                   one after the other
    hidden_packed  reads several texts side by side in one row, see `Transformer`; None
                   for a model that cannot
    """

    vocab_size: int
    width: int
    max_length: int | None = None
    reads_at_once: bool = True
    hidden_packed: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    head: Callable[[Tensor], Tensor]
    new_cache: Callable[[int, int], Cache]

    def hidden(
        self, ids: Tensor, mask: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """The last hidden states (B, T, D): what `head` turns into scores.

        ids    (B, T) int64
        mask   (B, T), 1 on tokens and 0 on padding; None means no padding. A
               left-padded row gives the same states as the row alone; those of
               padding mean nothing, and are finite.
        cache  from `new_cache`: holds earlier tokens, and is extended in place
        Raises ValueError if a sequence is longer than `max_length`.
        """
        raise NotImplementedError

    def outputs(
        self, ids: Tensor, mask: Tensor | None = None, cache: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, D) and logits (B, T, V) of one pass; see `hidden`."""
        hidden = self.hidden(ids, mask, cache)
        return hidden, self.head(hidden)

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, cache: Any = None
    ) -> tuple[Tensor, Any]:
        """Score the next token at every position.

        Returns logits (B, T, V), nats up to a constant, and the cache. Arguments
        and errors are those of `hidden`.
        """
        return self.outputs(ids, mask, cache)[1], cache

    def check_length(self, length: int) -> None:
        """ValueError if a sequence of that many tokens is too long to read."""
        if self.max_length is not None and length > self.max_length:
            raise ValueError(
                f"a sequence of {length} tokens; this model reads at most "
                f"{self.max_length}: shorten it, or take a model that reads "
                "longer ones"
            )
