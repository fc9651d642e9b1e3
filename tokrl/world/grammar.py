"""How an event is said: slots of words, chosen independently.

A clause is a row of slots. Each slot offers options with probabilities, and an
option carries its words in both languages, so that one choice fixes the English
*and* the Chinese text. The two languages differ only in words and in the order
of the slots. The choices of different slots are independent given the event:
the probability of a clause is a product, and reading a prefix of it is a walk
from slot to slot.
"""

from functools import cache
from typing import NamedTuple

from tokrl.world.lexicon import (
    FRAMES,
    MANNERS,
    PEOPLE,
    PLACES,
    THINGS,
    TIMES,
    VERBS,
    Thing,
    Verb,
)

PERSON = {person.name: person for person in PEOPLE}
PLACE = {place.name: place for place in PLACES}
THING = {thing.name: thing for thing in THINGS}


class Event(NamedTuple):
    """What happens in one clause.

    kind    "be", "have", "there" set the scene; "go", "take", "drop", "give",
            "put", "out" change the state; "frame" sets the tense
    subject the people who act (none for "there" and "frame")
    thing   what is acted on
    target  the place gone to, the person given to, the container, the tense
    """

    kind: str
    subject: tuple[str, ...] = ()
    thing: str | None = None
    target: str | None = None


class Option(NamedTuple):
    prob: float
    en: tuple[str, ...]
    zh: tuple[str, ...]


Slot = tuple[Option, ...]


class Clause(NamedTuple):
    """The slots of one clause, stored once and read in either order."""

    slots: tuple[Slot, ...]
    order_zh: tuple[int, ...]

    def order(self, lang: str) -> tuple[int, ...]:
        return tuple(range(len(self.slots))) if lang == "en" else self.order_zh

    def words(self, choice: tuple[int, ...], lang: str) -> tuple[str, ...]:
        column = 1 if lang == "en" else 2
        return sum(
            (self.slots[i][choice[i]][column] for i in self.order(lang)), start=()
        )

    def prob(self, choice: tuple[int, ...]) -> float:
        product = 1.0
        for slot, k in zip(self.slots, choice, strict=True):
            product *= slot[k].prob
        return product


class Style(NamedTuple):
    """The probabilities of saying a thing one way or another."""

    verbs: int
    pronoun: float
    time: float
    manner: float
    mention_place: float
    join: float


@cache
def fixed(en: str = "", zh: str = "") -> Slot:
    """A slot with one option; words are given separated by spaces."""
    return (Option(1.0, tuple(en.split()), tuple(zh.split())),)


def _optional(prob: float, options) -> Slot:
    """Nothing with probability 1 - prob, else one of `options`, equally likely."""
    said = tuple(Option(prob / len(options), en, zh) for en, zh in options)
    return tuple(o for o in (Option(1 - prob, (), ()), *said) if o.prob > 0)


@cache
def frame(tense: str) -> Clause:
    en, zh = FRAMES[tense]
    return Clause(((Option(1.0, en, zh),),), (0,))


@cache
def opening(subject: tuple, pronoun: bool, sentence: bool, style: Style) -> Slot:
    """How a clause begins: time, then who acts (Chinese: who, then time).

    `pronoun`: the same people acted in the sentence before, so that "he", "she"
    or "they" is clear. Inside a sentence (`sentence` false) nothing is said.
    """
    if not sentence:
        return fixed()
    names = (
        " and ".join(subject).split(),
        " 和 ".join(PERSON[name].zh for name in subject).split(),
    )
    if len(subject) == 1:
        she = PERSON[subject[0]].she
        short = (["She"], ["她"]) if she else (["He"], ["他"])
    else:
        all_she = all(PERSON[name].she for name in subject)
        short = (["They"], ["她们" if all_she else "他们"])
    said = (
        [(1 - style.pronoun, names), (style.pronoun, short)]
        if pronoun
        else [(1.0, names)]
    )
    options = []
    for time in _optional(style.time, TIMES):
        for prob, (en, zh) in said:
            if en is short[0] and time.en:
                en = [en[0].lower()]
            option = Option(prob * time.prob, (*time.en, *en), (*zh, *time.zh))
            if option.prob > 0:
                options.append(option)
    return tuple(options)


@cache
def thing_phrase(name: str, pronoun: bool, style: Style) -> Slot:
    """`the red ball`, or `it` where it was the last thing spoken of."""
    thing = THING[name]
    full = Option(1.0, ("the", thing.adjective, thing.noun), thing[2:4])
    if not pronoun or style.pronoun == 0:
        return (full,)
    it, ta = ("them", "它们") if thing.plural else ("it", "它")
    short = Option(style.pronoun, (it,), (ta,))
    return tuple(o for o in (full._replace(prob=1 - style.pronoun), short) if o.prob)


def indefinite(thing: Thing) -> tuple[str, ...]:
    """The English noun phrase at first mention: `a red ball`, `some red shoes`."""
    if thing.plural:
        article = "some"
    else:
        article = "an" if thing.adjective[0] in "aeiou" else "a"
    return (article, thing.adjective, thing.noun)


@cache
def new_thing(name: str) -> Slot:
    """A thing at first mention, with its Chinese classifier."""
    thing = THING[name]
    zh = ("一", thing.classifier, thing.zh_adjective, thing.zh_noun)
    return (Option(1.0, indefinite(thing), zh),)


@cache
def place_phrase(name: str, prob: float = 1.0) -> Slot:
    """`in the garden`, said with probability `prob`."""
    place = PLACE[name]
    return _optional(prob, [((place.preposition, "the", name), ("在", place.zh))])


def verb_form(verb: Verb, tense: str, plural: bool) -> str:
    if verb.base == "are" and tense == "past":
        return "were" if plural else "was"
    if tense == "past":
        return verb.past
    return verb.base if plural else verb.third


@cache
def verb_phrase(kind: str, tense: str, plural: bool, style: Style) -> Slot:
    """The verb that agrees with its subject; 了 marks what is done in the past."""
    verbs = VERBS[kind][: style.verbs]
    done = ("了",) if tense == "past" and kind not in ("be", "have") else ()
    return tuple(
        Option(1 / len(verbs), (verb_form(verb, tense, plural),), (verb.zh, *done))
        for verb in verbs
    )


@cache
def manner(style: Style) -> Slot:
    return _optional(style.manner, [((en,), (zh,)) for en, zh in MANNERS])


@cache
def ending(join: float) -> Slot:
    """The full stop, or the conjunction that lets the same people go on."""
    options = (Option(1 - join, (".",), ("。",)), Option(join, ("and",), ("，",)))
    return tuple(option for option in options if option.prob > 0)


def clause(
    event: Event,
    begin: Slot,
    tense: str,
    place: str | None,
    it: bool,
    may_join: bool,
    style: Style,
) -> Clause:
    """The slots of an event.

    begin    the slot that opens the clause
    place    where the subject is, for events that may mention it
    it       whether the thing was the last one spoken of
    may_join whether another clause may follow in the same sentence
    """  # fmt: skip
    kind, subject, thing, target = event
    stop = ending(style.join if may_join else 0.0)
    if kind == "be":
        verb = verb_phrase("be", tense, len(subject) > 1, style)
        where = PLACE[target]
        at = fixed(f"{where.preposition} the {target}", where.zh)
        return Clause((begin, verb, at, stop), (0, 1, 2, 3))
    if kind == "have":
        verb = verb_phrase("have", tense, False, style)
        return Clause((begin, verb, new_thing(thing), stop), (0, 1, 2, 3))
    if kind == "there":
        verb = verb_form(VERBS["be"][0], tense, THING[thing].plural)
        where = PLACE[target]
        at = fixed(f"{where.preposition} the {target}")
        return Clause((begin, fixed(verb), new_thing(thing), at, stop), (0, 1, 2, 3, 4))
    verb = verb_phrase(kind, tense, len(subject) > 1, style)
    how = manner(style)
    if kind == "go":
        return Clause(
            (begin, how, verb, fixed(f"to the {target}", PLACE[target].zh), stop),
            (0, 1, 2, 3, 4),
        )
    obj = thing_phrase(thing, it, style)
    if kind in ("take", "drop"):
        where = place_phrase(place, style.mention_place)
        return Clause((begin, how, verb, obj, where, stop), (0, 4, 1, 2, 3, 5))
    ba = fixed(zh="把")
    if kind == "give":
        to = fixed(f"to {target}", PERSON[target].zh)
        return Clause((begin, how, verb, obj, to, ba, stop), (0, 1, 5, 3, 2, 4, 6))
    box = THING[target]
    if kind == "put":
        into = fixed(f"into the {target}", f"{box.zh_adjective} {box.zh_noun}")
        return Clause((begin, how, verb, obj, into, ba, stop), (0, 1, 5, 3, 2, 4, 6))
    out = fixed(f"out of the {target}", f"从 {box.zh_adjective} {box.zh_noun} 里")
    return Clause((begin, how, verb, obj, out, stop), (0, 1, 4, 2, 3, 5))


def there(place: str) -> Slot:
    """How a clause begins that brings in a thing (Chinese names the place first)."""
    return (Option(1.0, ("There",), (PLACE[place].zh, "里", "有")),)


class Reading(NamedTuple):
    """What reading `words[start:]` as one clause gives.

    done     (end, choice) where all slots were read, else None
    next     probability of each next word, if the words ran out inside
    furthest index up to which the words could be read
    """

    done: tuple[int, tuple[int, ...]] | None
    next: dict[str, float]
    furthest: int


def read(clause: Clause, words: tuple[str, ...], start: int, lang: str) -> Reading:
    """Follow every choice of options that agrees with the words."""
    column = 1 if lang == "en" else 2
    length = len(words)
    paths = [(start, 1.0, ())]
    upcoming: dict[str, float] = {}
    furthest = start
    order = clause.order(lang)
    for i in order:
        longer = []
        for at, prob, chosen in paths:
            for k, option in enumerate(clause.slots[i]):
                text = option[column]
                if at < length and text and text[0] != words[at]:
                    continue  # most options, by far
                end = at + len(text)
                if words[at:end] == text:
                    longer.append((end, prob * option.prob, (*chosen, k)))
                    same = end
                else:
                    same = at
                    while same < length and words[same] == text[same - at]:
                        same += 1
                    if same == length:
                        word = text[length - at]
                        upcoming[word] = upcoming.get(word, 0.0) + prob * option.prob
                if same > furthest:
                    furthest = same
        paths = longer
        if not paths:
            return Reading(None, upcoming, furthest)
    end, _, chosen = paths[0]
    choice = [0] * len(order)
    for i, k in zip(order, chosen, strict=True):
        choice[i] = k
    return Reading((end, tuple(choice)), upcoming, furthest)
