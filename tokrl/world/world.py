"""A world that writes stories and knows the probability of every word."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from hashlib import sha256
from itertools import product
from typing import Any, NamedTuple

import torch

from tokrl.runs import collector_paused
from tokrl.tokenizers import Tokenizer
from tokrl.tokenizers.text import join_words, split_text
from tokrl.world.config import WorldConfig
from tokrl.world.grammar import PERSON, Clause, Event, Slot
from tokrl.world.lexicon import END, LANGUAGES, NO_NAMES
from tokrl.world.process import Discourse, Process, State, Step
from tokrl.world.questions import Answer, Question, answer
from tokrl.world.reading import Position, normalised, read_story
from tokrl.world.tokens import TokenOracle


@dataclass(frozen=True)
class Story:
    """A story and its probability.

    steps     its clauses in order, the empty one that ends it included
    log_prob  log of its probability, nats; the same in every language
    """

    steps: tuple[Step, ...] = field(repr=False)
    log_prob: float

    @property
    def tense(self) -> str:
        """The tense that the story is told in."""
        return self.steps[-1].after.tense

    @property
    def pairs(self) -> frozenset[tuple[str, str]]:
        """The people and things that have to do with each other: (person, thing)."""
        return frozenset(
            (person, event.thing)
            for event in self.events
            if event.thing
            for person in (*event.subject, event.target)
            if person in PERSON
        )

    @property
    def events(self) -> list[Event]:
        """What happens, clause by clause."""
        return [step.event for step in self.steps]

    @property
    def states(self) -> list[State]:
        """The facts after each clause, aligned with `events`."""
        return [step.after.state for step in self.steps]

    def words(self, lang: str = "en") -> list[str]:
        """The words and punctuation marks, the end word included."""
        _check_language(lang)
        words: list[str] = []
        for step in self.steps:
            words.extend(step.clause.words(step.choice, lang))
        return words

    def text(self, lang: str = "en") -> str:
        """The story as a person reads it."""
        return join_words(self.words(lang)[:-1])

    def __str__(self) -> str:
        return self.text()


class Entropy(NamedTuple):
    """How unpredictable the world's text is: the floor of every loss, in nats.

    per_story        expected -log p of a story
    per_word         per_story / words: the least cross-entropy per word
    words            expected number of words, the end word included
    standard_error   of per_story; 0 where it is exact
    """

    per_story: float
    per_word: float
    words: float
    standard_error: float


def _check_language(lang: str) -> None:
    if lang not in LANGUAGES:
        raise ValueError(f"lang={lang!r}: give one of {', '.join(LANGUAGES)}")


class World:
    """A probabilistic story-teller whose every word has a known probability."""

    def __init__(self, config: WorldConfig | None = None):
        self.config = config = config or WorldConfig()
        self._process = Process(config)
        self.people = self._process.people
        self.places = self._process.places
        self.things = self._process.things
        self._oracles: dict[tuple[Tokenizer, str], TokenOracle] = {}

    @classmethod
    def default(cls) -> "World":
        """The world of the book."""
        return cls()

    @classmethod
    def small(cls, sentences: int = 2) -> "World":
        """A world whose stories can all be written down.

        sentences: how many follow the scene, in every story.
        """
        return cls(
            WorldConfig(
                people=2, places=2, things=1, cast_people=2, cast_things=1,
                min_sentences=sentences, max_sentences=sentences,
                tenses=("present",), verbs=1, pronoun=0.5, time=0.0, manner=0.0,
                mention_place=0.0, join=0.25, pair=0.5, together=0.5, lure=1.0,
            )
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"World({self.config})"

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON-ready values; `World(WorldConfig(**d))`."""
        return asdict(self.config)

    def sample_story(self, generator: torch.Generator) -> Story:
        """Draw a story from the world's distribution."""
        draw = _uniforms(generator)
        d, steps, log_prob = Discourse(), [], 0.0
        while not steps or steps[-1].event.kind != "end":
            p, who = _pick(self._process.who(d), draw)
            q, event = _pick(self._process.what(d, who), draw)
            said = self._process.clause(d, who, event)
            choice = tuple([_pick_option(slot, draw) for slot in said.slots])
            log_prob += math.log(p * q * said.prob(choice))
            steps.append(self._process.step(d, event, said, choice))
            d = steps[-1].after
        return Story(tuple(steps), log_prob)

    def sample_stories(
        self, count: int, generator: torch.Generator, part: str | None = None
    ) -> list[Story]:
        """Draw `count` independent stories.

        part  "train" or "test": of that part of the split only; None: of both
        """
        if part not in (None, "train", "test"):
            raise ValueError(f"part={part!r}: give 'train', 'test' or None")
        if part == "test" and not self.held_out:
            raise ValueError("this world is too small to hold a combination out")
        stories: list[Story] = []
        with collector_paused():
            while len(stories) < count:
                story = self.sample_story(generator)
                if part is None or self.part(story) == part:
                    stories.append(story)
        return stories

    # The split: some people and things meet in the test part only.

    @cached_property
    def held_out(self) -> frozenset[tuple[str, str]]:
        """The combinations (person, thing) that occur in the test part only.

        About one in eight, chosen by a hash of their names, so that the choice is
        the same everywhere and for ever. Each person and each thing also occurs in
        other combinations.
        """
        return frozenset(
            (person, thing)
            for person, thing in product(self.people, self.things)
            if sha256(f"{person} and the {thing}".encode()).digest()[0] < 32
        )

    def part(self, story: Story) -> str:
        """The part of the split that a story is in: "train" or "test".

        A story is in the test part if a held-out combination occurs in it: the
        person has, takes, gets, gives or moves the thing. So no test story occurs
        in training, nor does what it says of that pair.
        """
        return "train" if self.held_out.isdisjoint(story.pairs) else "test"

    # Questions.

    def questions(self, story: Story) -> list[tuple[Question, Answer]]:
        """Every question about what a story mentions, with its answer."""
        state = story.states[-1]
        asked = [Question("where", x, story.tense) for x in state.people + state.things]
        asked += [Question("who", thing, story.tense) for thing in state.things]
        return [(question, answer(state, question)) for question in asked]

    def sample_question(
        self,
        story: Story,
        generator: torch.Generator,
        hops: int | None = None,
        unknown: float = 0.0,
    ) -> tuple[Question, Answer]:
        """Draw a question about the end of a story, with its answer.

        hops     facts that lead to the answer: 1, 2 or 3; None: all numbers that
                 this story has questions for, equally likely
        unknown  probability of asking about what the story never mentions
        Raises ValueError if the story has no question with so many hops, or nothing
        of the world is left out of it.
        """
        draw = _uniforms(generator)
        state = story.states[-1]
        if unknown and draw() < unknown:
            asked = [
                Question(kind, name, story.tense)
                for name in self.people + self.things
                if name not in state.people + state.things
                for kind in ("where", "who")
                if kind == "where" or name in self.things
            ]
            if not asked:
                raise ValueError("this story mentions all that its world knows")
            question = asked[int(draw() * len(asked))]
            return question, answer(state, question)
        found = self.questions(story)
        numbers = sorted({reply.hops for _, reply in found})
        if hops is None:
            hops = numbers[int(draw() * len(numbers))]
        if hops not in numbers:
            raise ValueError(
                f"hops={hops!r}: this story has questions of "
                f"{', '.join(map(str, numbers))}"
            )
        found = [pair for pair in found if pair[1].hops == hops]
        return found[int(draw() * len(found))]

    def answer(self, story: Story, question: Question) -> Answer:
        """The answer to a question about the end of a story.

        Its name is "unknown" if the story does not mention what is asked about.
        Raises ValueError for a question that cannot be asked.
        """
        return answer(story.states[-1], question)

    # The oracle: what the words so far allow.

    def _read(self, words: Sequence[str], lang: str) -> Position:
        _check_language(lang)
        return read_story(self._process, words, lang)

    def next_word_probs(self, words: Sequence[str], lang: str = "en") -> dict:
        """The exact distribution of the next word after `words`.

        words: any prefix of a story, as `Story.words(lang)` spells it.
        Returns {word: probability}, likeliest first, summing to 1; empty if the
        prefix is impossible or already ended. Along a story the product is
        `exp(story.log_prob)`.
        """
        return normalised(self._read(words, lang).upcoming)

    def token_probs(
        self, prefix_ids: Sequence[int], tokenizer: Tokenizer, lang: str = "en"
    ) -> dict[int, float]:
        """The exact distribution of the next token, for any tokenizer.

        prefix_ids  the beginning of `tokenizer.encode(story.text(lang))`; a leading
                    `<bos>` may be there
        Returns {id: probability}, likeliest first, summing to 1; `eos_id` is what
        follows a whole story; empty if no story begins with these ids. Along the
        ids of a story the product is `exp(story.log_prob)`, provided that the
        tokenizer knows all words: texts that share their ids share a probability.

        Takes about a millisecond; up to a second, once for each new situation, in
        byte-pair encoding of Chinese, whose tokens cross the borders of words.
        """
        _check_language(lang)
        oracle = self._oracles.get((tokenizer, lang))
        if oracle is None:
            oracle = TokenOracle(self._process, self.vocabulary(lang), tokenizer, lang)
            self._oracles[tokenizer, lang] = oracle
        ids = [int(i) for i in prefix_ids]
        return oracle.probs(ids[1:] if ids[:1] == [tokenizer.bos_id] else ids)

    def first_error(self, words: Sequence[str], lang: str = "en") -> int | None:
        """Index of the first word that is impossible after the words before it.

        Impossible is what has probability 0 in this world: bad grammar, or a
        statement that is false in the state (taking a thing that lies elsewhere).
        None if every word is possible; a story may then still be unfinished.
        """
        furthest = self._read(words, lang).furthest
        return furthest if furthest < len(words) else None

    def log_prob(self, words: Sequence[str], lang: str = "en") -> float:
        """Log probability, nats, of a whole story given as words (-inf if none)."""
        steps = self._read(words, lang).steps
        if not steps or steps[-1].event.kind != "end":
            return -math.inf
        if sum(len(s.clause.words(s.choice, lang)) for s in steps) < len(words):
            return -math.inf
        return sum(self._log_probs(steps))

    def translate(self, words: Sequence[str], source: str, target: str) -> list[str]:
        """The same clauses in the other language, as far as `words` completes them.

        Raises ValueError, naming the word, if the words are impossible.
        """
        _check_language(target)
        position = self._read(words, source)
        if position.furthest < len(words):
            at = position.furthest
            raise ValueError(
                f"word {at} ({words[at]!r}) is impossible after {list(words[:at])}"
            )
        translated: list[str] = []
        for step in position.steps:
            translated.extend(step.clause.words(step.choice, target))
        return translated

    def _log_probs(self, steps: Iterable[Step]) -> Iterator[float]:
        """Log probability of each clause given those before it."""
        d = Discourse()
        for step in steps:
            for prob, event, _ in self._process.clauses(d):
                if event == step.event:
                    yield math.log(prob * step.clause.prob(step.choice))
                    break
            d = step.after

    # Words, vocabularies, sizes.

    def split(self, text: str, lang: str = "en") -> list[str]:
        """The words of a text in the spelling of `Story.words`, end word excluded."""
        _check_language(lang)
        return split_text(text, self.vocabulary(lang))

    @cache  # noqa: B019
    def vocabulary(self, lang: str = "en", questions: bool = False) -> tuple[str, ...]:
        """Every word that can occur, sorted, the end word included.

        questions: also those of questions and answers.
        """
        _check_language(lang)
        words = {END}
        for said in self._process.every_kind_of_clause():
            for slot in said.slots:
                for option in slot:
                    words.update(option.en if lang == "en" else option.zh)
        if questions:
            words.update(self._words_of_questions(lang))
        return tuple(sorted(words))

    def _words_of_questions(self, lang: str) -> Iterator[str]:
        for tense in self.config.tenses:
            for name in self.people + self.things:
                yield from Question("where", name, tense).words(lang)
            for name in self.things:
                yield from Question("who", name, tense).words(lang)
        for name in (*self.places, *self.people, *NO_NAMES):
            yield from Answer(name, ()).words(lang)

    @cache  # noqa: B019
    def max_words(self, lang: str = "en") -> int:
        """A number of words that no story exceeds, the end word included."""
        _check_language(lang)
        longest: dict[str, int] = {"told": 0, "be": 0, "new": 0, "frame": 0}
        for said, event in self._process.every_kind_of_clause().items():
            size = sum(max(len(o[1 + (lang == "zh")]) for o in s) for s in said.slots)
            kind = {"have": "new", "there": "new"}.get(event.kind, event.kind)
            kind = kind if kind in longest else "told"
            longest[kind] = max(longest[kind], size)
        config = self.config
        scene = config.cast_people * longest["be"] + config.cast_things * longest["new"]
        clauses = config.max_sentences * (2 if config.join else 1)
        return longest["frame"] + scene + clauses * longest["told"] + 1

    def entropy_rate(
        self,
        lang: str = "en",
        samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Entropy:
        """The entropy of the world's stories, in nats: per story and per word.

        samples    None: exact, by recursion over all states (small worlds only);
                   else the mean over that many sampled stories of the exact
                   conditional entropy of each clause, with its standard error
        generator  for the samples
        Raises ValueError if exact is asked of a world too large to walk.
        """
        _check_language(lang)
        if samples is None:
            per_story, words = self._exact_entropy(lang, Discourse(), {})
            return Entropy(per_story, per_story / words, words, 0.0)
        if samples < 2 or generator is None:
            raise ValueError(
                f"samples={samples!r}, generator={generator!r}: give at least 2 "
                "samples and a torch.Generator"
            )
        local: dict[Discourse, float] = {}
        totals, lengths = [], []
        for _ in range(samples):
            story = self.sample_story(generator)
            total, d = 0.0, Discourse()
            for step in story.steps:
                if d not in local:
                    local[d] = sum(
                        p * (_clause_entropy(said) - math.log(p))
                        for p, _, said in self._process.clauses(d)
                    )
                total += local[d]
                d = step.after
            totals.append(total)
            lengths.append(len(story.words(lang)))
        per_story = sum(totals) / samples
        variance = sum((t - per_story) ** 2 for t in totals) / (samples - 1)
        words = sum(lengths) / samples
        return Entropy(
            per_story, per_story / words, words, math.sqrt(variance / samples)
        )

    def _exact_entropy(
        self, lang: str, d: Discourse, memo: dict
    ) -> tuple[float, float]:
        """(nats, words) still to come, expected, from a discourse on."""
        if d in memo:
            return memo[d]
        if len(memo) > 50_000:
            raise ValueError(
                "this world has more than 50,000 states, too many for the exact "
                "entropy: give samples=... and generator=... for an estimate"
            )
        column = 1 if lang == "en" else 2
        nats = words = 0.0
        for p, event, said in self._process.clauses(d):
            nats += p * (_clause_entropy(said) - math.log(p))
            words += p * sum(o.prob * len(o[column]) for s in said.slots for o in s)
            if event.kind == "end":
                continue
            for option in said.slots[-1]:
                after = self._process.after(d, event, option.en != ("and",))
                more = self._exact_entropy(lang, after, memo)
                nats += p * option.prob * more[0]
                words += p * option.prob * more[1]
        memo[d] = nats, words
        return memo[d]

    def all_stories(self) -> Iterator[Story]:
        """Every story of the world with its probability (for small worlds)."""
        todo: list[tuple[tuple[Step, ...], Discourse, float]] = [((), Discourse(), 0.0)]
        while todo:
            steps, d, log_prob = todo.pop()
            if steps and steps[-1].event.kind == "end":
                yield Story(steps, log_prob)
                continue
            for prob, event, said in self._process.clauses(d):
                for choice in product(*(range(len(slot)) for slot in said.slots)):
                    step = self._process.step(d, event, said, choice)
                    total = log_prob + math.log(prob * said.prob(choice))
                    todo.append(((*steps, step), step.after, total))


def _clause_entropy(said: Clause) -> float:
    """Entropy, nats, of the choices that a clause leaves to its slots."""
    return -sum(o.prob * math.log(o.prob) for slot in said.slots for o in slot)


def _uniforms(generator: torch.Generator) -> Callable[[], float]:
    """A function that draws numbers in [0, 1), fetched by the hundred for speed."""

    def numbers() -> Iterator[float]:
        while True:
            yield from torch.rand(
                128, generator=generator, dtype=torch.float64
            ).tolist()

    return numbers().__next__


def _pick(weighted: list[tuple[float, Any]], draw: Callable[[], float]) -> tuple:
    """One of the (probability, choice) pairs, by inverse CDF."""
    if len(weighted) == 1:
        return weighted[0]
    left = draw()
    for pair in weighted:
        left -= pair[0]
        if left < 0:
            return pair
    return weighted[-1]


def _pick_option(slot: Slot, draw: Callable[[], float]) -> int:
    if len(slot) == 1:
        return 0
    left = draw()
    for k, option in enumerate(slot):
        left -= option.prob
        if left < 0:
            return k
    return len(slot) - 1
