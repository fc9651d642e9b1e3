"""Question answering over stories: steps of thought, then an answer.

A prompt is a story, a question about its end and the word that says how to go on:
`Steps:` asks for a chain of short steps before the answer, `Answer:` for the answer
at once. What a completion looks like, and what it is paid:

    red ball, Anna, garden. Answer: garden
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from math import exp, nan
from typing import NamedTuple

import torch

from tokrl.masking import unpad
from tokrl.models import LanguageModel
from tokrl.rollout import encode_prompts
from tokrl.sampling import generate
from tokrl.tokenizers import Tokenizer, WordTokenizer, join_words, split_text
from tokrl.world import Answer, Question, Story, World, WorldConfig
from tokrl.world.grammar import PERSON, PLACE, THING
from tokrl.world.questions import answer as answer_in

BLOT = "___"
"""Stands in a story for a word that cannot be read."""

UNKNOWN = "unknown"
STEPS, AT_ONCE = "Steps:", "Answer:"
LONGEST = 14
"""Tokens that a completion needs at most."""

READER = WorldConfig(
    people=4, places=4, things=4, cast_people=2, cast_things=1, min_sentences=1,
    max_sentences=3, tenses=("present",), verbs=1, pronoun=0.0, time=0.0, manner=0.0,
    mention_place=0.0, join=0.0, pair=0.0,
)  # fmt: skip
"""The world of the stories that the shipped reader answers questions about."""

ANNOTATORS = {"hasty": 0.6, "shy": 1.0, "at_once": 0.25}
"""Those whom the shipped reader learnt from: arguments of `annotate`."""


@dataclass(frozen=True)
class Example:
    """A question about a story, and what is known about its answer.

    story     the text as the reader gets it, with a blot or without
    question  its text
    truth     the answer that holds, with its chain
    stale     the answer that held before the last change, if there was one: what
              somebody says who overlooked it
    chances   {place: probability}, the exact ones given the story with its blot;
              empty where there is no blot
    """

    story: str
    question: str
    truth: Answer
    stale: Answer | None = None
    chances: dict[str, float] | None = None

    def prompt(self, steps: bool = True) -> str:
        """The text that an answer continues, with a chain or at once."""
        return prompt(self.story, self.question, steps)


class Reply(NamedTuple):
    """What a model answered.

    chain       its steps, from what was asked about on; () if it wrote none
    answer      a person, a place, "nobody" or "unknown"; whatever it wrote, if none
    confidence  probability that the model writes just this chain and this answer
    """

    chain: tuple[str, ...]
    answer: str
    confidence: float = 1.0


@dataclass(frozen=True)
class Measures:
    """How well some questions were answered; shares from 0 to 1.

    accuracy    right answers
    by_hops     {hops: accuracy}; 0 hops: the right answer is "unknown"
    unknown     answers that are "unknown"
    answered    accuracy among the other answers; nan if there are none
    confidence  mean probability that the model gave its replies
    """

    accuracy: float
    by_hops: dict[int, float]
    unknown: float
    answered: float
    confidence: float


# --- data -----------------------------------------------------------------------------


def prompt(story: str, question: str, steps: bool = True) -> str:
    """The text that an answer continues."""
    return f"{story} {question} {STEPS if steps else AT_ONCE}"


def completion(answer: Answer, steps: bool = True) -> str:
    """An answer as text, after its chain or at once."""
    return f"{', '.join(answer.chain)}. {AT_ONCE} {answer.name}" if steps else answer[0]


def read(text: str, confidence: float = 1.0) -> Reply:
    """The reply that a completion spells: what follows "Answer:", or all of it."""
    chain, mark, answer = text.rpartition(f". {AT_ONCE}")
    steps = tuple(chain.split(", ")) if mark else ()
    return Reply(steps, answer.strip(), confidence)


def make_tokenizer(world: World) -> WordTokenizer:
    """Words and marks of the world's stories, questions and answers."""
    words = {*world.vocabulary(questions=True), STEPS[:-1], AT_ONCE[:-1], *":,.?"}
    return WordTokenizer.train([sorted(words - {"<eos>"})])


def make_examples(
    world: World,
    count: int,
    generator: torch.Generator,
    unknown: float = 0.1,
    blotted: float = 0.0,
    part: str | None = None,
) -> list[Example]:
    """Draw stories with a question each, of at most two hops.

    unknown  probability of a question about what the story never mentions
    blotted  share of questions whose answer is under a blot: where the person went
             last whose place is asked for
    part     of the world's split, see `World.sample_stories`
    Raises ValueError for shares that are none.
    """
    for name, share in (("unknown", unknown), ("blotted", blotted)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name}={share!r}: give a share from 0 to 1")
    examples: list[Example] = []
    while len(examples) < count:
        blot = float(torch.rand((), generator=generator)) < blotted
        while True:
            (story,) = world.sample_stories(1, generator, part)
            asked, truth = world.sample_question(
                story, generator, unknown=0.0 if blot else unknown
            )
            at = _last_move(story, truth) if blot else None
            if truth.hops <= 2 and (at is not None or not blot):
                break
        words, stale, chances = story.words(), None, {}
        if blot:
            chances = _chances(world, words, at)
            words[at] = BLOT
        else:
            stale = _stale(story, asked, truth)
        text = join_words(words[:-1])
        asking = join_words(asked.words())
        examples.append(Example(text, asking, truth, stale, chances))
    return examples


def _stale(story: Story, asked: Question, truth: Answer) -> Answer | None:
    """The answer that held before it last changed; None if it never did."""
    for state in reversed(story.states):
        before = answer_in(state, asked)
        if before.name != truth.name:
            return None if before.name == UNKNOWN or before.hops > 2 else before
    return None


def _last_move(story: Story, truth: Answer) -> int | None:
    """Where the words say the place that a person asked for went to last."""
    found, start = None, 0
    if truth.chain[-1] not in PLACE or truth.chain[-2] not in PERSON:
        return None
    for step in story.steps:
        words = step.clause.words(step.choice, "en")
        if truth.chain[-2] in step.event.subject and step.event.kind == "go":
            found = start + words.index(step.event.target)
        start += len(words)
    return found


def _chances(world: World, words: Sequence[str], at: int) -> dict[str, float]:
    """The exact probability of each place at one word, given all the others."""
    weights = {
        place: exp(world.log_prob([*words[:at], place, *words[at + 1 :]]))
        for place in world.places
    }
    total = sum(weights.values())
    return {place: weight / total for place, weight in weights.items() if weight}


def annotate(
    examples: Sequence[Example],
    generator: torch.Generator,
    hasty: float = 0.0,
    shy: float = 0.0,
    at_once: float = 0.0,
) -> list[tuple[str, str]]:
    """Prompts with the completions that annotators wrote, for imitation.

    hasty    chance that an annotator overlooks the last change, and gives with its
             chain the answer that held before
    shy      how much an annotator minds a guess: where the answer is under a blot and
             the best guess is right with probability p, the annotator writes "unknown"
             with probability shy (1 - p), and else a guess drawn as the story goes
    at_once  chance of an answer without a chain
    """
    written = []
    for example in examples:
        hurry, doubt, short = torch.rand(3, generator=generator).tolist()
        reply = example.truth
        if example.stale is not None and hurry < hasty:
            reply = example.stale
        if example.chances and doubt < shy * (1 - max(example.chances.values())):
            reply = Answer(UNKNOWN, reply.chain[:-1])
        steps = short >= at_once
        written.append((example.prompt(steps), completion(reply, steps)))
    return written


# --- rewards --------------------------------------------------------------------------


class AnswerReward:
    """Sequence reward: 1 for the right answer, 0 for "unknown", less for a wrong one.

    wrong  what a wrong answer costs, c: who is right with probability p gains
           p - c (1 - p) by answering: more than the 0 of "unknown" does where p is
           above `threshold`, c / (1 + c)
    Needs the column `answer`, the name that is right; the chain does not matter.
    Raises ValueError if `wrong` is below 0.
    """

    __name__ = "answer"

    def __init__(self, wrong: float = 0.0):
        if not wrong >= 0:
            raise ValueError(f"wrong={wrong!r}: give a cost of at least 0")
        self.wrong = wrong

    @property
    def threshold(self) -> float:
        """The probability of being right from which on an answer pays."""
        return self.wrong / (1 + self.wrong)

    def __call__(self, prompts, completions, completion_ids, answer, **columns):
        rewards = []
        for text, right in zip(completions, answer, strict=True):
            given = read(text).answer
            silent = 0.0 if given == UNKNOWN else -self.wrong
            rewards.append(1.0 if given == right else silent)
        return rewards


class StepReward:
    """Token reward: each right step of the chain, on the mark that closes it.

    A step is right if it and all steps before it are those of the true chain. The
    steps of a chain are paid 1 together. Needs the column `chain`.
    """

    __name__ = "steps"

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, prompts, completions, completion_ids, chain, **columns):
        rewards = []
        for ids, true in zip(completion_ids, chain, strict=True):
            texts = [self.tokenizer.decode(ids[: t + 1]) for t in range(len(ids))]
            done = [0, *(right_steps(text, true) for text in texts)]
            rewards.append([(b - a) / len(true) for a, b in pairwise(done)])
        return rewards


def right_steps(text: str, chain: Sequence[str]) -> int:
    """How many steps of a completion, from the first on, are finished and right."""
    head, closed, _ = text.partition(".")
    steps = [step.strip() for step in head.split(",")]
    finished = steps if closed else steps[:-1]
    same = (a == b for a, b in zip(finished, chain, strict=False))
    return next(
        (i for i, equal in enumerate(same) if not equal), min(len(finished), len(chain))
    )


def columns(examples: Sequence[Example]) -> dict[str, list]:
    """What the rewards need to know of each question, for `train_policy`."""
    return {
        "answer": [example.truth.name for example in examples],
        "chain": [example.truth.chain for example in examples],
    }


# --- answers --------------------------------------------------------------------------


def answer_all(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    generator: torch.Generator | None = None,
) -> list[Reply]:
    """The replies of a model to prompts.

    generator  of draws from the model; None takes the likeliest token each time
    """
    replies = []
    for start in range(0, len(prompts), 256):
        ids, mask = encode_prompts(prompts[start : start + 256], tokenizer)
        found, kept, logprobs = generate(
            model, ids, mask, LONGEST, top_k=0 if generator else 1,
            eos_id=tokenizer.eos_id, generator=generator, pad_id=tokenizer.pad_id,
        )  # fmt: skip
        chances = logprobs.sum(-1).exp().tolist()
        for row, chance in zip(unpad(found, kept), chances, strict=True):
            replies.append(read(tokenizer.decode(row), chance))
    return replies


def answer(
    model: LanguageModel,
    tokenizer: Tokenizer,
    story: str,
    question: str,
    steps: bool = True,
) -> Reply:
    """The likeliest reply of a model to one question.

    story     sentences as the world tells them; "___" stands for a word that cannot
              be read
    question  "Where is Anna?", "Who has the red ball?"
    steps     whether it writes a chain first
    Raises ValueError for words that the model does not know (named), an empty story,
    a text that is no question of these two kinds, or a story too long to read.
    """
    if not story.strip():
        raise ValueError("the story is empty: give at least one sentence")
    question = question.strip()
    if split_text(question)[:1] not in (["Where"], ["Who"]) or question[-1:] != "?":
        raise ValueError(
            f"question={question!r}: ask 'Where is ...?' or 'Who has ...?'"
        )
    text = prompt(story.strip(), question, steps)
    known = [token for token in tokenizer.vocab if token[0].isalpha()]
    spelt = zip(tokenizer.tokens(text), tokenizer.encode(text), strict=True)
    strange = dict.fromkeys(token for token, i in spelt if i == tokenizer.unk_id)
    if strange := [token for token in strange if token != BLOT]:
        raise ValueError(
            f"unknown words: {', '.join(strange)}; this model knows: "
            f"{', '.join(sorted(known))}"
        )
    asked, possible = join_words(split_text(question)), _possible_questions(tokenizer)
    if asked not in possible:
        like = get_close_matches(asked, possible, n=1, cutoff=0.0)
        raise ValueError(
            f"question={question!r}: ask where a person or a thing is, or who has a "
            f"thing, like {' or '.join(map(repr, like))}"
        )
    return answer_all(model, tokenizer, [text])[0]


def _possible_questions(tokenizer: Tokenizer) -> list[str]:
    """All questions in the present about people and things that have tokens."""
    pairs = [("where", name) for name in PERSON | THING]
    pairs += [("who", name) for name in THING]
    asked = [Question(*pair).words() for pair in pairs]
    return [join_words(q) for q in asked if all(w in tokenizer.vocab for w in q)]


def measure(examples: Sequence[Example], replies: Sequence[Reply]) -> Measures:
    """How well the questions were answered, one reply for each."""
    if len(examples) != len(replies) or not replies:
        raise ValueError(
            f"{len(examples)} questions and {len(replies)} replies: give as many of "
            "both, at least one"
        )
    right = [r.answer == e.truth.name for e, r in zip(examples, replies, strict=True)]
    by_hops: dict[int, list[bool]] = {}
    for example, good in zip(examples, right, strict=True):
        by_hops.setdefault(example.truth.hops, []).append(good)
    spoken = [
        good
        for reply, good in zip(replies, right, strict=True)
        if reply.answer != UNKNOWN
    ]
    return Measures(
        accuracy=_mean(right),
        by_hops={hops: _mean(by_hops[hops]) for hops in sorted(by_hops)},
        unknown=1 - len(spoken) / len(replies),
        answered=_mean(spoken),
        confidence=_mean([reply.confidence for reply in replies]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else nan


def calibration(
    examples: Sequence[Example], replies: Sequence[Reply], bins: int = 5
) -> list[tuple[float, float, int]]:
    """Replies grouped by confidence: (mean confidence, accuracy, number) of each.

    bins  intervals of equal width between 0 and 1; empty ones are left out
    A reader that knows how sure it may be has equal numbers in each group.
    """
    groups: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for example, reply in zip(examples, replies, strict=True):
        at = min(int(reply.confidence * bins), bins - 1)
        groups[at].append((reply.confidence, reply.answer == example.truth.name))
    return [
        (_mean([c for c, _ in group]), _mean([r for _, r in group]), len(group))
        for group in groups
        if group
    ]


def table(examples: Sequence[Example], replies: Sequence[Reply]) -> str:
    """Questions, the true chain and what was replied, as aligned text."""
    lines = []
    for example, reply in zip(examples, replies, strict=True):
        mark = "right" if reply.answer == example.truth.name else "wrong"
        lines += [
            example.question,
            f"  true   {', '.join(example.truth.chain)}: {example.truth.name}",
            f"  {mark}  {', '.join(reply.chain)}: {reply.answer}",
        ]
    return "\n".join(lines)
