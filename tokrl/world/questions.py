"""Questions about a story, and their answers read off its state."""

from typing import NamedTuple

from tokrl.world.grammar import PERSON, PLACE, THING, verb_form
from tokrl.world.lexicon import NO_NAMES, VERBS
from tokrl.world.process import State

KINDS = ("where", "who")


class Question(NamedTuple):
    """A question about the end of a story.

    kind   "where": at which place is a person or a thing; "who": who has a thing,
           in the hand or in a container held
    about  the name of the person or thing
    tense  of the story that it is asked about
    """

    kind: str
    about: str
    tense: str = "present"

    def words(self, lang: str = "en") -> list[str]:
        """The words and the question mark."""
        thing = THING.get(self.about)
        if lang == "zh":
            if thing:
                about = [thing.zh_adjective, thing.zh_noun]
            else:
                about = [PERSON[self.about].zh]
            where = self.kind == "where"
            return [*about, "在", "哪里", "？"] if where else ["谁", "有", *about, "？"]
        about = ["the", thing.adjective, thing.noun] if thing else [self.about]
        if self.kind == "who":
            verb = verb_form(VERBS["have"][0], self.tense, plural=False)
            return ["Who", verb, *about, "?"]
        plural = thing is not None and thing.plural
        return ["Where", verb_form(VERBS["be"][0], self.tense, plural), *about, "?"]


class Answer(NamedTuple):
    """The answer to a question, and the way to it.

    name   a place or a person; "nobody" has a thing that lies in a place;
           "unknown" where the story never mentions what is asked about
    chain  what is asked about, then where that is, step by step:
           ("red ball", "Anna", "garden")
    """

    name: str
    chain: tuple[str, ...]

    @property
    def hops(self) -> int:
        """How many facts lead to the answer; 0 where there is none."""
        return len(self.chain) - 1

    def words(self, lang: str = "en") -> list[str]:
        """The answer, in one word."""
        if lang == "en":
            return [self.name]
        entry = PLACE.get(self.name) or PERSON.get(self.name)
        return [entry.zh if entry else NO_NAMES[self.name]]


def answer(state: State, question: Question) -> Answer:
    """The answer that holds in a state.

    Raises ValueError for a question that cannot be asked.
    """
    kind, about, _ = question
    askable = {"where": PERSON | THING, "who": THING}.get(kind, ())
    if about not in askable:
        raise ValueError(
            f"{question}: ask 'where' about a person or a thing, 'who' about a thing"
        )
    if about not in state.people + state.things:
        return Answer("unknown", (about,))
    chain = [about]
    while chain[-1] not in PLACE and (kind == "where" or chain[-1] not in PERSON):
        chain.append(state.location(chain[-1]))
    nobody = kind == "who" and chain[-1] in PLACE
    return Answer("nobody" if nobody else chain[-1], tuple(chain))
