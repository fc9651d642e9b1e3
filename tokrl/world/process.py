"""The process behind the text: a hidden state, and the events possible in it.

A story is a path of a Markov chain. Its state (`Discourse`) holds who is where,
who holds what, and who was spoken of last; each step is one clause. The words of
the possible next clauses are never prefixes of each other, in either language,
so the text determines the path.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from tokrl.world.config import WorldConfig
from tokrl.world.grammar import (
    PERSON,
    PLACE,
    THING,
    Clause,
    Event,
    Slot,
    Style,
    clause,
    fixed,
    frame,
    opening,
    there,
)
from tokrl.world.lexicon import END, PEOPLE, PLACES, THINGS

NO_ONE: tuple[str, ...] = ()


class State(NamedTuple):
    """Who is where, what lies where: the facts of the story so far.

    thing_at names a place, the person who holds the thing, or its container.
    """

    people: tuple[str, ...] = ()
    person_at: tuple[str, ...] = ()
    things: tuple[str, ...] = ()
    thing_at: tuple[str, ...] = ()

    def location(self, name: str) -> str:
        """Where a person or a thing is said to be: one step, any kind of spot."""
        if name in self.people:
            return self.person_at[self.people.index(name)]
        if name in self.things:
            return self.thing_at[self.things.index(name)]
        known = ", ".join(self.people + self.things) or "nobody and nothing yet"
        raise KeyError(f"{name!r} is not in this story, which knows: {known}")

    def place(self, name: str) -> str:
        """The place of a person or a thing, through holders and containers."""
        while name not in PLACE:
            name = self.location(name)
        return name

    def holder(self, name: str) -> str | None:
        """The person who has a thing, in the hand or in a container held."""
        while name not in PLACE:
            name = self.location(name)
            if name in PERSON:
                return name
        return None

    def moved(self, name: str, spot: str) -> "State":
        """The facts with a person or a thing in another place, or with another holder.

        Raises ValueError for what the story does not know.
        """
        if name in self.people:
            i = self.people.index(name)
            return self._replace(person_at=_replaced(self.person_at, i, spot))
        i = self.things.index(name)
        return self._replace(thing_at=_replaced(self.thing_at, i, spot))


def _replaced(row: tuple, i: int, value) -> tuple:
    return (*row[:i], value, *row[i + 1 :])


class Discourse(NamedTuple):
    """All that the next clause depends on."""

    state: State = State()
    tense: str | None = None
    subject: tuple[str, ...] = NO_ONE
    thing: str | None = None
    sentences: int = 0
    joining: bool = False


class Step(NamedTuple):
    """One clause of a story: what was said, how, and what holds after it."""

    event: Event
    clause: Clause
    choice: tuple[int, ...]
    after: Discourse


STOP = Clause((fixed(END, END),), (0,))
_WEIGHTS = {"go": 2.0, "take": 2.0, "drop": 1.0, "give": 2.0, "put": 2.0, "out": 1.0}


class Process:
    """The chances of a world: who acts next, what they do, how it is said.

    Each choice is a list of (probability, choice); sampling a story, reading one
    and summing over all of them use the same lists.
    """

    def __init__(self, config: WorldConfig):
        self.config = config
        self.people = tuple(person.name for person in PEOPLE[: config.people])
        self.places = tuple(place.name for place in PLACES[: config.places])
        self.things = tuple(thing.name for thing in THINGS[: config.things])
        self._style = Style(
            config.verbs, config.pronoun, config.time, config.manner,
            config.mention_place, config.join,
        )  # fmt: skip
        # The same situations and the same clauses come back in story after story.
        self._introductions = lru_cache(1 << 8)(self._introductions)
        self._acting = lru_cache(1 << 12)(self._acting)
        self._additions = lru_cache(1 << 12)(self._additions)
        self._going = lru_cache(1 << 14)(self._going)
        self._actions = lru_cache(1 << 12)(self._actions)
        self._worded = lru_cache(1 << 14)(self._worded)
        # Beginnings of stories that were read, and what they said: see `reading`.
        self.read_before: dict[
            tuple[str, tuple[str, ...]], tuple[Discourse, tuple[Step, ...]]
        ] = {}

    def who(self, d: Discourse) -> list[tuple[float, tuple]]:
        """Who or what the next clause is about: (probability, key).

        The key is ("frame",), (END,), ("there", place) or (kind, people).
        """
        config = self.config
        if d.tense is None:
            return [(1.0, ("frame",))]
        state = d.state
        if len(state.people) < config.cast_people:
            return self._introductions(state.people)
        if len(state.things) < config.cast_things:
            spots = self._weights_of_places(self._busy(state))
            half = 0.5 / sum(weight for weight, _ in spots)
            holders = [(0.5 / len(state.people), ("have", (p,))) for p in state.people]
            return [(w * half, ("there", p)) for w, p in spots] + holders
        if d.joining:
            return [(1.0, ("act", d.subject))]
        done = d.sentences
        end = 0.0
        if done >= config.min_sentences:
            end = 1 / (config.max_sentences - done + 1)
        if end == 1.0:
            return [(1.0, (END,))]
        pairs = ()
        if config.together:
            at = state.person_at
            pairs = tuple(
                [(j, i) for i in range(len(at)) for j in range(i) if at[i] == at[j]]
            )
        acting = self._acting(state.people, pairs, d.subject, 1 - end)
        return [(end, (END,)), *acting] if end else acting

    def _acting(
        self, people: tuple, pairs: tuple, last: tuple, share: float
    ) -> list[tuple[float, tuple]]:
        """Who acts: one person, or one of the `pairs` (by number) in one place."""
        config = self.config
        acting = [((person,), 1.0) for person in people]
        acting += [((people[j], people[i]), config.together) for j, i in pairs]
        weighted = [
            (weight * config.stay if who == last else weight, who)
            for who, weight in acting
        ]
        scale = share / sum(weight for weight, _ in weighted)
        return [(weight * scale, ("act", who)) for weight, who in weighted]

    def _introductions(self, known: tuple[str, ...]) -> list[tuple[float, tuple]]:
        """Who is introduced next: one person, or two at once."""
        config = self.config
        rest = [name for name in self.people if name not in known]
        pair = config.pair if len(known) + 2 <= config.cast_people else 0.0
        alone = [((1 - pair) / len(rest), ("be", (a,))) for a in rest]
        if not pair:
            return alone
        share = pair / (len(rest) * (len(rest) - 1))
        both = [(share, ("be", (a, b))) for a in rest for b in rest if a != b]
        return (alone if pair < 1 else []) + both

    def _busy(self, state: State) -> frozenset[str]:
        """The places where somebody or something is."""
        return frozenset(p for p in state.person_at + state.thing_at if p in PLACE)

    def _weights_of_places(self, busy: frozenset[str]) -> list[tuple[float, str]]:
        return [(self.config.lure if p in busy else 1.0, p) for p in self.places]

    def what(self, d: Discourse, who: tuple) -> list[tuple[float, Event]]:
        """What they do: every event that is possible now, with its probability."""
        kind = who[0]
        state = d.state
        if kind == "frame":
            tenses = self.config.tenses
            return [(1 / len(tenses), Event("frame", target=t)) for t in tenses]
        if kind == END:
            return [(1.0, Event("end"))]
        if kind == "be":
            spots = self._weights_of_places(self._busy(state))
            total = sum(weight for weight, _ in spots)
            return [(w / total, Event("be", who[1], None, p)) for w, p in spots]
        if kind in ("there", "have"):
            return self._additions(kind, who[1], state.things)
        return self._actions(state, who[1])

    def _additions(
        self, kind: str, about, known: tuple[str, ...]
    ) -> list[tuple[float, Event]]:
        """A thing that the story has not had: in a person's hands or in a place."""
        rest = [name for name in self.things if name not in known]
        subject, target = (NO_ONE, about) if kind == "there" else (about, None)
        return [(1 / len(rest), Event(kind, subject, t, target)) for t in rest]

    def _going(
        self, subject: tuple, here: str, busy: frozenset[str]
    ) -> list[tuple[float, Event]]:
        spots = [spot for spot in self._weights_of_places(busy) if spot[1] != here]
        total = sum(weight for weight, _ in spots)
        return [(w / total, Event("go", subject, None, p)) for w, p in spots]

    def _actions(self, state: State, subject: tuple) -> list[tuple[float, Event]]:
        """The actions open to people standing in one place."""
        here = state.place(subject[0])
        going = self._going(subject, here, self._busy(state))
        if len(subject) > 1:
            return going
        (who,) = subject
        held, lying = [], []
        for thing, at in zip(state.things, state.thing_at, strict=True):
            if at == who:
                held.append(thing)
            elif at == here:
                lying.append(thing)
        boxes = [t for t in held + lying if THING[t].container]
        others = [p for p, at in zip(state.people, state.person_at, strict=True)
                  if at == here and p != who]  # fmt: skip
        chances = {
            "take": [Event("take", subject, t) for t in lying],
            "drop": [Event("drop", subject, t) for t in held],
            "give": [Event("give", subject, t, p) for t in held for p in others],
        }
        if boxes:
            loose = [t for t in held if not THING[t].container]
            chances["put"] = [
                Event("put", subject, t, box) for t in loose for box in boxes
            ]
            chances["out"] = [
                Event("out", subject, t, box)
                for t, box in zip(state.things, state.thing_at, strict=True)
                if box in boxes
            ]
        chances = {kind: events for kind, events in chances.items() if events}
        scale = 1 / sum(map(_WEIGHTS.__getitem__, ("go", *chances)))
        events = [(p * scale * _WEIGHTS["go"], event) for p, event in going]
        for kind, choices in chances.items():
            prob = scale * _WEIGHTS[kind] / len(choices)
            events.extend([(prob, event) for event in choices])
        return events

    def begin(self, d: Discourse, who: tuple) -> Slot:
        """How a clause about `who` opens."""
        again = who[0] == "act" and who[1] == d.subject
        return self._opening(*who[:2], again, d.joining)

    def _opening(self, kind: str, about=NO_ONE, again=False, joining=False) -> Slot:
        if kind == "there":
            return there(about)
        if kind in ("frame", END):
            return fixed()
        # The opening sentences give no time: the frame did.
        style = self._style if kind == "act" else self._style._replace(time=0.0)
        return opening(about, again, not joining, style)

    def clause(self, d: Discourse, who: tuple, event: Event) -> Clause:
        kind, subject, thing, _ = event
        place = d.state.place(subject[0]) if kind in ("take", "drop") else None
        again = who[0] == "act" and subject == d.subject
        return self._worded(
            event, who, d.tense, place, thing == d.thing, again, d.joining
        )

    def _worded(
        self, event: Event, who: tuple, tense: str, place: str | None,
        it: bool, again: bool, joining: bool,
    ) -> Clause:  # fmt: skip
        """The clause of an event: depends on little of the story, so it is kept."""
        if event.kind == "frame":
            return frame(event.target)
        if event.kind == "end":
            return STOP
        begin = self._opening(*who[:2], again, joining)
        may_join = who[0] == "act" and not joining
        return clause(event, begin, tense, place, it, may_join, self._style)

    def after(self, d: Discourse, event: Event, closed: bool) -> Discourse:
        """The discourse after a clause; `closed` if a full stop ended it."""
        kind, subject, thing, target = event
        if kind == "frame":
            return d._replace(tense=target)
        if kind == "end":
            return d
        state = d.state
        if kind == "be":
            state = state._replace(
                people=state.people + subject,
                person_at=state.person_at + (target,) * len(subject),
            )
        elif kind in ("have", "there"):
            state = state._replace(
                things=(*state.things, thing),
                thing_at=(*state.thing_at, target or subject[0]),
            )
        elif kind == "go":
            for person in subject:
                state = state.moved(person, target)
        elif kind in ("take", "out"):
            state = state.moved(thing, subject[0])
        elif kind == "drop":
            state = state.moved(thing, state.place(subject[0]))
        else:
            state = state.moved(thing, target)
        scene = kind in ("be", "have", "there")
        sentences = d.sentences + (closed and not scene)
        return Discourse(state, d.tense, subject, thing, sentences, not closed)

    def step(self, d: Discourse, event: Event, said: Clause, choice) -> Step:
        closed = said.slots[-1][choice[-1]].en != ("and",)
        return Step(event, said, choice, self.after(d, event, closed))

    def clauses(self, d: Discourse) -> Iterator[tuple[float, Event, Clause]]:
        """Every possible next clause: (probability of the event, event, clause)."""
        for p, who in self.who(d):
            for q, event in self.what(d, who):
                yield p * q, event, self.clause(d, who, event)

    def every_kind_of_clause(self) -> dict[Clause, Event]:
        """Clauses in which every word of the world occurs in every slot it can."""
        config, style = self.config, self._style
        people, places, things = self.people, self.places, self.things
        one = people[:1]
        alone = [(name,) for name in people]
        pairs = [(a, b) for a in people for b in people if a != b]
        together = pairs if config.cast_people > 1 and config.together else []
        paired = pairs if config.cast_people > 1 and config.pair else []
        boxes = [t for t in things if THING[t].container and config.cast_things > 1]
        loose = [t for t in things if not THING[t].container]
        events = [Event("be", who, None, p) for who in alone + paired for p in places]
        events += [Event("have", who, t) for who in alone for t in things]
        events += [Event("there", NO_ONE, t, p) for t in things for p in places]
        events += [
            Event("go", who, None, p) for who in alone + together for p in places
        ]
        for thing in things:
            events += [
                Event(kind, who, thing) for kind in ("take", "drop") for who in alone
            ]
            if config.cast_people > 1:
                events += [Event("give", one, thing, name) for name in people]
        for thing in loose:
            events += [
                Event(k, one, thing, box) for k in ("put", "out") for box in boxes
            ]
        clauses = {}
        for tense in config.tenses:
            clauses[frame(tense)] = Event("frame", target=tense)
            for event in events:
                told = event.kind not in ("be", "have", "there")
                if event.kind == "there":
                    begin = there(event.target)
                else:
                    begin = opening(
                        event.subject,
                        told,
                        True,
                        style if told else style._replace(time=0.0),
                    )
                for place in places if event.kind in ("take", "drop") else places[:1]:
                    said = clause(event, begin, tense, place, told, told, style)
                    clauses[said] = event
        return clauses
