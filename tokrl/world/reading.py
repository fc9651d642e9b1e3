"""Reading words back into the clauses that they are, and what may come next."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from tokrl.world.grammar import Clause, ending, read
from tokrl.world.process import Discourse, Process, Step

Key = TypeVar("Key", str, int)

# What a clause ends with, in either language.
STOPS = {word for option in ending(0.5) for text in option[1:] for word in text}
REMEMBERED = 1 << 14


class Position(NamedTuple):
    """Where reading stopped.

    steps     the clauses that were read whole
    upcoming  the mass of each next word, the last clause's words so far included
    furthest  index of the first word that is impossible, or the number of words
    """

    steps: list[Step]
    upcoming: dict[str, float]
    furthest: int


def read_story(process: Process, words: Sequence[str], lang: str) -> Position:
    """Read clause by clause until the words run out or become impossible."""
    if isinstance(words, str):
        raise TypeError("words is a string: give a list, as `split` returns it")
    words = tuple(words)
    at, d, steps = _recall(process, words, lang)
    while True:
        found, upcoming, furthest = _next_clause(process, d, words, at, lang)
        if found is None:
            return Position(steps, upcoming, furthest)
        (at, choice), event, said = found
        steps.append(process.step(d, event, said, choice))
        d = steps[-1].after
        if event.kind == "end":
            return Position(steps, {}, at)
        if words[at - 1] in STOPS:
            if len(process.read_before) == REMEMBERED:
                process.read_before.clear()
            process.read_before[lang, words[:at]] = d, tuple(steps)


def _next_clause(
    process: Process, d: Discourse, words: tuple[str, ...], at: int, lang: str
) -> tuple[tuple | None, dict[str, float], int]:
    """The clause that begins at `words[at]`, if it is whole: where it ends and with
    which choice, its event, and its slots. If not: what may come next, and how far
    the words are possible, as in `Position`.
    """
    upcoming: dict[str, float] = {}
    furthest = at
    for p, who in process.who(d):
        begin = process.begin(d, who)
        opened = read(Clause((begin,), (0,)), words, at, lang)
        if opened.done is None:
            furthest = max(furthest, opened.furthest)
            for word, prob in opened.next.items():
                upcoming[word] = upcoming.get(word, 0.0) + p * prob
            continue
        for q, event in process.what(d, who):
            said = process.clause(d, who, event)
            done, following, reach = read(said, words, at, lang)
            if done:  # no two events are told in the same words
                return (done, event, said), {}, at
            furthest = max(furthest, reach)
            for word, prob in following.items():
                upcoming[word] = upcoming.get(word, 0.0) + p * q * prob
    return None, upcoming, furthest


def _recall(
    process: Process, words: tuple[str, ...], lang: str
) -> tuple[int, Discourse, list[Step]]:
    """The longest beginning that was read before: its length and what it said.

    A stop ends a clause for good, whatever follows it: a beginning up to a stop is
    read one way only.
    """
    for at in range(len(words), 0, -1):
        if words[at - 1] in STOPS:
            found = process.read_before.get((lang, words[:at]))
            if found is not None:
                return at, found[0], list(found[1])
    return 0, Discourse(), []


def normalised(masses: dict[Key, float]) -> dict[Key, float]:
    """Probabilities from masses: summing to 1, the likeliest first."""
    total = sum(masses.values())
    ranked = sorted(masses.items(), key=lambda item: (-item[1], item[0]))
    return {key: mass / total for key, mass in ranked}
