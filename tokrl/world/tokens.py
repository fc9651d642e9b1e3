"""The world's next-token distribution, for the tokens of any tokenizer.

A tokenizer is a function from texts to ids, so the distribution over stories is a
distribution over sequences of ids, and each next id has an exact probability given
those before it. The stories are written in units that the tokenizer keeps apart:
words, where it splits at words; else (byte-pair encoding of Chinese, whose tokens
cross the borders of words) all that stands between two punctuation marks.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from tokrl.tokenizers import Tokenizer
from tokrl.tokenizers.text import join_words, split_text
from tokrl.world.lexicon import END
from tokrl.world.process import Discourse, Process
from tokrl.world.reading import normalised, read_story


class Unit(NamedTuple):
    """What may be written next: its probability, its words, its ids."""

    prob: float
    words: tuple[str, ...]
    ids: tuple[int, ...]


class TokenOracle:
    """The exact next-token distribution of a world under one tokenizer.

    vocabulary: the words of the world in the language `lang`.
    """

    def __init__(
        self,
        process: Process,
        vocabulary: Sequence[str],
        tokenizer: Tokenizer,
        lang: str,
    ):
        self._process, self._tokenizer, self._lang = process, tokenizer, lang
        self._vocabulary = {word for word in vocabulary if word != END}
        self._by_word = all(
            tokenizer.separates(a, join_words([a, b])[len(a) :])
            for a, b in product(self._vocabulary, repeat=2)
            if a.isalnum() or b.isalnum()  # no two marks follow each other
        )
        # A story is read token by token, and stories share their clauses.
        self._units = lru_cache(1 << 10)(self._units)
        self._clauses = lru_cache(1 << 6)(self._clauses)

    def probs(self, prefix: Sequence[int]) -> dict[int, float]:
        """{id: probability} of the token after `prefix`; empty if there is none."""
        words, read = self._surely_read(prefix)
        found: dict[int, float] = {}
        self._follow(words, tuple(prefix[read:]), 1.0, found)
        return normalised(found)

    def _surely_read(self, prefix: Sequence[int]) -> tuple[tuple[str, ...], int]:
        """The words of the clauses that `prefix` completes, and their ids' number."""
        words = split_text(self._tokenizer.decode(prefix), self._vocabulary)
        steps = read_story(self._process, words, self._lang).steps
        done = [w for s in steps for w in s.clause.words(s.choice, self._lang)]
        ids = self._tokenizer.encode(join_words(done))
        if ids == list(prefix[: len(ids)]):
            return tuple(done), len(ids)
        return (), 0  # not the ids that encoding gives: read all from the start

    def _follow(self, words, rest, mass: float, found: dict[int, float]) -> None:
        """Add up, by the id after `rest`, the mass of what may follow `words`."""
        for prob, more, ids in self._units(words):
            shared = min(len(ids), len(rest))
            if ids[:shared] != rest[:shared]:
                continue
            if len(ids) > len(rest):
                following = ids[len(rest)]
                found[following] = found.get(following, 0.0) + mass * prob
            else:
                self._follow(words + more, rest[len(ids) :], mass * prob, found)

    def _units(self, words: tuple[str, ...]) -> list[Unit]:
        steps, upcoming, _ = read_story(self._process, words, self._lang)
        if self._by_word:
            probs = normalised(upcoming).items()
            return [Unit(p, (word,), self._ids(words, (word,))) for word, p in probs]
        if steps and steps[-1].event.kind == "end":
            return []
        return self._clauses(steps[-1].after if steps else Discourse(), words[-1:])

    def _clauses(self, d: Discourse, last: tuple[str, ...]) -> list[Unit]:
        """Every way to go on to the next punctuation mark, after the word `last`."""
        return [
            Unit(prob, words, self._ids(last, words))
            for prob, words in self._to_next_mark(d)
        ]

    def _to_next_mark(self, d: Discourse) -> Iterator[tuple[float, tuple[str, ...]]]:
        for p, event, said in self._process.clauses(d):
            for choice in product(*(range(len(slot)) for slot in said.slots)):
                prob = p * said.prob(choice)
                words = said.words(choice, self._lang)
                if event.kind == "end" or not words[-1].isalnum():
                    yield prob, words
                    continue
                after = self._process.step(d, event, said, choice).after
                for more, others in self._to_next_mark(after):
                    yield prob * more, words + others

    def _ids(self, before: tuple[str, ...], words: tuple[str, ...]) -> tuple[int, ...]:
        """The ids of `words` where they follow the words `before`."""
        if words == (END,):
            return (self._tokenizer.eos_id,)
        start = len(join_words(before[-1:]))
        text = join_words([*before[-1:], *words])[start:]
        return tuple(self._tokenizer.encode(text))
