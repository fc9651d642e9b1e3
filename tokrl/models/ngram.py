"""n-gram language models: the next token from counts of the few tokens before it."""

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from operator import index

import torch

SMOOTHINGS = ("none", "witten_bell")


class NGram:
    """Predicts a token from the `order - 1` tokens before it, by counting.

    order       1 ignores the context, 2 sees one token, ...
    vocab_size  V: ids are 0 to V - 1
    smoothing   none: relative frequencies, which maximise the likelihood of the
                texts counted; what was never seen gets probability 0.
                witten_bell: mixed with the model of the next lower order, and so on
                down to 1/V. With c(h, w) how often token w followed context h, c(h)
                the sum, d(h) the number of different tokens that followed:
                    P(w | h) = (c(h, w) + d(h) P(w | h')) / (c(h) + d(h)),
                h' being h without its oldest token; a context that was never seen
                leaves P(w | h'). Witten and Bell (1991, method C), interpolated as
                in Chen and Goodman (1999).

    A text is a list of ids that starts with a begin token. Fewer than `order - 1`
    ids are taken as the start of a text: its first token is repeated before it.
    """

    def __init__(self, order: int, vocab_size: int, smoothing: str = "witten_bell"):
        for name, value in (("order", order), ("vocab_size", vocab_size)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: give a whole number of at least 1")
        if smoothing not in SMOOTHINGS:
            raise ValueError(
                f"smoothing={smoothing!r}: give one of {', '.join(SMOOTHINGS)}"
            )
        self.order, self.vocab_size, self.smoothing = order, vocab_size, smoothing
        # By length of the context: {context: {token: count}} and {context: sum}.
        self._counts: list[dict[tuple, dict[int, float]]] = []
        self._totals: list[dict[tuple, float]] = []

    def __repr__(self) -> str:
        return f"NGram({self.order}, {self.vocab_size}, {self.smoothing!r})"

    def fit(
        self, texts: Sequence[Sequence[int]], weights: Sequence[float] | None = None
    ) -> "NGram":
        """Count every token after its contexts of 0 to `order - 1` tokens.

        texts    id lists; the first token of each is given, not counted
        weights  how often each text counts, above 0 (1 each). Without smoothing the
                 exact probabilities of all texts give what endless data would.
        Counts of an earlier `fit` are forgotten. Raises ValueError if there is
        nothing to count, or for an id outside the vocabulary.
        """
        weights = [1] * len(texts) if weights is None else weights
        padded = []
        for text, weight in zip(texts, weights, strict=True):
            if not weight > 0:
                raise ValueError(f"a weight is {weight!r}: give numbers above 0")
            ids = self._checked(text)
            padded.append((ids[:1] * (self.order - 1) + ids, weight))
        if all(len(ids) <= self.order for ids, _ in padded):
            raise ValueError(
                "the texts hold no token to predict: give at least one text of at "
                "least 2 tokens, the begin token and one more"
            )
        self._counts = [self._count(padded, length) for length in range(self.order)]
        self._totals = [
            {h: sum(row.values()) for h, row in table.items()} for table in self._counts
        ]
        return self

    def reduced(self, order: int, smoothing: str | None = None) -> "NGram":
        """The model of a lower order fitted to the same texts; it shares the counts.

        smoothing: of the new model; None keeps this one's.
        Raises ValueError for an order above this one's.
        """
        model = NGram(order, self.vocab_size, smoothing or self.smoothing)
        if order > self.order:
            raise ValueError(f"order={order!r}: this model has order {self.order}")
        model._counts, model._totals = self._counts[:order], self._totals[:order]
        return model

    def table(self) -> dict[tuple, dict[int, float]]:
        """{context: {token: count}}, all contexts having `order - 1` tokens.

        It is the model's own: not to be changed. Raises ValueError before `fit`.
        """
        if not self._counts:
            raise ValueError("this model has counted nothing: call fit first")
        return self._counts[-1]

    def conditional_entropy(self) -> float:
        """Entropy of a token given the `order - 1` before it, as counted: nats.

        It is the cross-entropy of plain counts on the very texts counted; with
        exact weights, what no model that sees only so far back can fall below.
        """
        nats = 0.0
        for h, row in self.table().items():
            total = self._totals[-1][h]
            nats -= sum(c * math.log(c / total) for c in row.values())
        return nats / sum(self._totals[-1].values())

    def probs(self, context: Sequence[int]) -> list[float]:
        """The distribution of the next token: V probabilities that sum to 1.

        context: ids, of which the last `order - 1` matter. Raises ValueError for an
        id outside the vocabulary, and where plain counts have never seen the context.
        """
        context = self._window(self._checked(context))
        rows = self._rows(context)
        probs = [1 / self.vocab_size] * self.vocab_size
        if self.smoothing == "none" and not rows[0][1]:
            raise ValueError(
                f"the context {list(context)} was never seen: plain counts give it no "
                "distribution, smoothing='witten_bell' does"
            )
        for row, total in rows:
            kept = 0 if self.smoothing == "none" else len(row)
            if total:
                probs = [kept * p / (total + kept) for p in probs]
                for w, count in row.items():
                    probs[w] += count / (total + kept)
        return probs

    def prob(self, token: int, context: Sequence[int]) -> float:
        """The probability of one token; 0 where plain counts never saw it there."""
        return self._prob(*self._checked((token,)), self._checked(context))

    def log_prob(self, ids: Sequence[int]) -> float:
        """Log-probability, nats, of all tokens of a text but the first, given it.

        -inf where one of them has probability 0, which only plain counts say.
        """
        ids, total = self._checked(ids), 0.0
        for t in range(1, len(ids)):
            p = self._prob(ids[t], ids[max(0, t - self.order + 1) : t])
            if p == 0:
                return -math.inf
            total += math.log(p)
        return total

    def cross_entropy(self, texts: Sequence[Sequence[int]]) -> float:
        """Mean negative log-probability, nats per token; inf if a token has none.

        Raises ValueError if no text has a token to predict.
        """
        tokens = sum(max(0, len(text) - 1) for text in texts)
        if not tokens:
            raise ValueError("the texts hold no token to predict: give at least one")
        return -sum(self.log_prob(text) for text in texts) / tokens

    def sample(
        self,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        eos_id: int | None = None,
        generator: torch.Generator | None = None,
    ) -> list[int]:
        """Continue a prompt (at least the begin token), each token by inverse CDF.

        Returns the new ids, up to and including the first `eos_id`.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens!r}: give at least 1")
        ids = list(self._checked(prompt_ids))
        start = len(ids)
        draws = torch.rand(max_new_tokens, generator=generator, dtype=torch.float64)
        for uniform in draws.tolist():
            cumulative = list(accumulate(self.probs(ids[-self.order :])))
            last = bisect_left(cumulative, cumulative[-1])  # the last one above 0
            ids.append(min(bisect_right(cumulative, uniform * cumulative[-1]), last))
            if ids[-1] == eos_id:
                break
        return ids[start:]

    def _checked(self, ids: Sequence[int]) -> tuple[int, ...]:
        ids = tuple(map(index, ids))  # those of a tensor as well
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            bad = next(i for i in ids if not 0 <= i < self.vocab_size)
            raise ValueError(f"id {bad}: the ids are 0 to {self.vocab_size - 1}")
        return ids

    def _count(self, padded: list[tuple], length: int) -> dict[tuple, dict[int, float]]:
        """{context: {token: count}} for the contexts of one length."""
        windows: dict[tuple, float] = defaultdict(int)
        first = self.order - length  # where the context of the first token begins
        for ids, weight in padded:
            # As many copies as a window has tokens, each a place further on.
            copies = [ids[i:] for i in range(first, self.order + 1)]
            for window in zip(*copies, strict=False):
                windows[window] += weight
        table: dict[tuple, dict[int, float]] = {}
        for (*context, token), count in windows.items():
            table.setdefault(tuple(context), {})[token] = count
        return table

    def _window(self, context: tuple) -> tuple:
        """The `order - 1` tokens that the model sees."""
        seen = self.order - 1
        if len(context) >= seen:
            return context[len(context) - seen :]
        if not context:
            raise ValueError("the context is empty: give at least the begin token")
        return context[:1] * (seen - len(context)) + context

    def _rows(self, window: tuple) -> list[tuple[dict[int, float], float]]:
        """(counts, sum) after the window: of its suffixes, shortest first, or its own.

        Plain counts need the whole window only.
        """
        self.table()
        shortest = 0 if self.smoothing == "witten_bell" else len(window)
        suffixes = [window[len(window) - k :] for k in range(shortest, len(window) + 1)]
        return [
            (self._counts[len(h)].get(h, {}), self._totals[len(h)].get(h, 0))
            for h in suffixes
        ]

    def _prob(self, token: int, context: tuple) -> float:
        p = 1 / self.vocab_size if self.smoothing == "witten_bell" else 0.0
        for row, total in self._rows(self._window(context)):
            kept = 0 if self.smoothing == "none" else len(row)
            if total:
                p = (row.get(token, 0) + kept * p) / (total + kept)
        return p
