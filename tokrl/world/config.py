"""How large a world is and how its story-teller talks."""

import math
from dataclasses import dataclass

from tokrl.world.lexicon import FRAMES, PEOPLE, PLACES, THINGS

TENSES = tuple(FRAMES)


@dataclass(frozen=True)
class WorldConfig:
    """The size of a world and the habits of its story-teller.

    people, places, things    how many of each the world knows
    cast_people, cast_things  how many of them one story is about
    min_sentences, max_sentences  sentences after the scene is set, all lengths
                              between them equally likely
    tenses                    tenses a story may be told in
    verbs                     synonyms in use for each kind of event (1 or 2)
    pronoun                   chance of he, she, they, it, them where it is clear
    time, manner              chance of "Later, ..." and of "quietly"
    mention_place             chance of "in the kitchen" after take and drop
    join                      chance that a sentence gets a second clause ("and")
    pair                      chance that two people are introduced together
    stay                      weight of the last subject against each other one
    together                  weight of two people in one place acting as one
    lure                      weight of a place where somebody or something is,
                              against an empty one
    """

    people: int = 8
    places: int = 8
    things: int = 16
    cast_people: int = 2
    cast_things: int = 2
    min_sentences: int = 3
    max_sentences: int = 5
    tenses: tuple[str, ...] = TENSES
    verbs: int = 2
    pronoun: float = 0.6
    time: float = 0.2
    manner: float = 0.15
    mention_place: float = 0.3
    join: float = 0.25
    pair: float = 0.3
    stay: float = 2.0
    together: float = 0.5
    lure: float = 4.0

    def __post_init__(self):
        object.__setattr__(self, "tenses", tuple(self.tenses))
        most = self.max_sentences
        if not isinstance(most, int) or most < 1:
            raise ValueError(
                f"max_sentences={most!r}: give a whole number of at least 1"
            )
        limits = {
            "people": (1, len(PEOPLE)),
            "places": (2, len(PLACES)),
            "things": (1, len(THINGS)),
            "cast_people": (1, self.people),
            "cast_things": (1, self.things),
            "min_sentences": (1, self.max_sentences),
            "verbs": (1, 2),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise ValueError(
                    f"{name}={value!r}: give a whole number from {low} to {high}"
                )
        for name in ("pronoun", "time", "manner", "mention_place", "join", "pair"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value!r}: give a chance from 0 to 1")
        for name in ("stay", "together", "lure"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value!r}: give a weight of at least 0")
        if not self.stay + self.lure > 0 or self.stay == 0 or self.lure == 0:
            raise ValueError(
                f"stay={self.stay!r}, lure={self.lure!r}: give weights above 0"
            )
        if not self.tenses or any(tense not in TENSES for tense in self.tenses):
            raise ValueError(
                f"tenses={self.tenses!r}: give one or more of {', '.join(TENSES)}"
            )
        if len(set(self.tenses)) < len(self.tenses):
            raise ValueError(f"tenses={self.tenses!r}: name each tense once")
