"""Reading words back into the clauses that they are, and what may come next."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from tokrl.world.grammar import Clause, read
from tokrl.world.process import Discourse, Process, Step

Key = TypeVar("Key", str, int)


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
    at, d, steps = 0, Discourse(), []
    while True:
        found, upcoming, furthest = None, {}, at
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
                furthest = max(furthest, reach)
                for word, prob in following.items():
                    upcoming[word] = upcoming.get(word, 0.0) + p * q * prob
                if done:
                    found = (done, event, said)
        if found is None:
            return Position(steps, upcoming, furthest)
        (at, choice), event, said = found
        steps.append(process.step(d, event, said, choice))
        d = steps[-1].after
        if event.kind == "end":
            return Position(steps, {}, at)


def normalised(masses: dict[Key, float]) -> dict[Key, float]:
    """Probabilities from masses: summing to 1, the likeliest first."""
    total = sum(masses.values())
    ranked = sorted(masses.items(), key=lambda item: (-item[1], item[0]))
    return {key: mass / total for key, mass in ranked}
