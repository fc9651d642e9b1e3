"""Questions over stories: their truth, their rewards, their answers."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tokrl import models, pretrained
from tokrl.apps import qa
from tokrl.models import LanguageModel
from tokrl.pretrained import make_reader
from tokrl.rewards import judge
from tokrl.tokenizers import Tokenizer
from tokrl.world import Answer, World


@pytest.fixture(scope="module")
def world():
    return World(qa.READER)


@pytest.fixture(scope="module")
def tokenizer(world):
    return qa.make_tokenizer(world)


def draw(world, count, seed, **options):
    return qa.make_examples(
        world, count, torch.Generator().manual_seed(seed), **options
    )


def moments(text):
    """{name: place or person} after each sentence, from the words alone."""
    at, found = {}, []
    for sentence in text.removeprefix("Today, ").rstrip(".").split(". "):
        words = sentence.split()
        last, thing = words[-1], " ".join(words[-2:])
        if words[0] == "There":
            at[" ".join(words[3:5])] = last
        elif re.search(" (is|goes|go) ", sentence):
            for person in words[: 3 if words[1] == "and" else 1]:
                at[person] = last
        elif words[1] == "gives":
            at[" ".join(words[3:5])] = last
        else:  # has, takes, drops
            at[thing] = at[words[0]] if words[1] == "drops" else words[0]
        at.pop("and", None)
        found.append(dict(at))
    return found


def chain_at(at, question):
    """The chain and the answer that the words of a question have at one moment."""
    kind, *_ = words = question.rstrip("?").split()
    name = words[-1] if words[-2] == "is" else " ".join(words[-2:])
    chain = [name]
    while chain[-1] in at and not (kind == "Who" and len(chain) > 1):
        chain.append(at[chain[-1]])
    if len(chain) == 1:
        return ("unknown", (name,))
    nobody = kind == "Who" and chain[-1][0].islower()
    return ("nobody" if nobody else chain[-1], tuple(chain))


def test_truth_and_stale_answers_follow_from_the_words(world):
    hops, stale = set(), 0
    for example in draw(world, 400, 0, unknown=0.2):
        known = [chain_at(at, example.question) for at in moments(example.story)]
        assert tuple(example.truth) == known[-1]
        hops.add((example.question[:3], example.truth.hops))
        before = [reply for reply in known if reply[0] != known[-1][0]]
        expected = before[-1] if before and before[-1][0] != "unknown" else None
        assert (example.stale and tuple(example.stale)) == expected
        stale += expected is not None
    assert hops == {("Whe", 0), ("Whe", 1), ("Whe", 2), ("Who", 0), ("Who", 1)}
    assert 0.2 < stale / 400 < 0.7


def test_chances_under_a_blot_are_those_of_the_world(world):
    expected = hits = 0.0
    for example in draw(world, 150, 1, blotted=1.0):
        assert example.story.count(qa.BLOT) == 1
        assert example.stale is None
        weights = {}
        for place in world.places:
            words = [*world.split(example.story.replace(qa.BLOT, place)), "<eos>"]
            weight = 1.0
            for t, word in enumerate(words):
                weight *= world.next_word_probs(words[:t]).get(word, 0.0)
            weights[place] = weight
        total = sum(weights.values())
        for place, weight in weights.items():
            chance = example.chances.get(place, 0.0)
            assert chance == pytest.approx(weight / total, abs=1e-9)
        expected += max(example.chances.values())
        best = max(example.chances, key=example.chances.get)
        hits += best == example.truth.name
    assert hits == pytest.approx(expected, abs=4 * math.sqrt(150 / 4))


def test_annotators_are_hasty_as_often_as_said(world):
    plain, blotted = draw(world, 600, 2), draw(world, 300, 3, blotted=1.0)
    generator = torch.Generator().manual_seed(0)
    pairs = qa.annotate(plain, generator, hasty=0.6, at_once=0.25)
    changed = [i for i, e in enumerate(plain) if e.stale]
    wrong = [qa.read(pairs[i][1]).answer == plain[i].stale.name for i in changed]
    assert sum(wrong) / len(wrong) == pytest.approx(0.6, abs=0.1)
    for i in set(range(len(plain))) - set(changed):
        assert qa.read(pairs[i][1]).answer == plain[i].truth.name
    short = [prompt.endswith(qa.AT_ONCE) for prompt, _ in pairs]
    assert sum(short) / 600 == pytest.approx(0.25, abs=0.06)
    for (_, text), brief in zip(pairs, short, strict=True):
        assert (qa.read(text).chain == ()) == brief
    replies = [qa.read(c) for _, c in qa.annotate(blotted, generator, shy=0.5)]
    silent = sum(reply.answer == "unknown" for reply in replies)
    expected = sum(0.5 * (1 - max(e.chances.values())) for e in blotted)
    assert silent == pytest.approx(expected, abs=4 * math.sqrt(300 / 4))
    sure = [r for e, r in zip(blotted, replies, strict=True) if len(e.chances) == 1]
    assert "unknown" not in [reply.answer for reply in sure]
    assert qa.annotate(plain[:1], generator)[0] == (
        plain[0].prompt(), qa.completion(plain[0].truth),
    )  # fmt: skip


def test_completions_and_how_they_read(tokenizer):
    truth = Answer("garden", ("red ball", "Anna", "garden"))
    text = "red ball, Anna, garden. Answer: garden"
    assert qa.completion(truth) == text == tokenizer.decode(tokenizer.encode(text))
    assert qa.completion(truth, steps=False) == "garden"
    assert qa.read(text, 0.5) == (truth.chain, "garden", 0.5)
    assert qa.read("garden") == ((), "garden", 1.0)
    assert qa.read("Anna, Anna").answer == "Anna, Anna"
    assert len(tokenizer.encode(text)) < qa.LONGEST


def paid(reward, tokenizer, texts, truth):
    ids = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    needed = {"answer": [truth.name] * len(ids), "chain": [truth.chain] * len(ids)}
    return judge(reward, [""] * len(ids), texts, ids, **needed)


def test_answers_are_paid_by_their_truth(tokenizer):
    truth = Answer("garden", ("Anna", "garden"))
    texts = ["Anna, park. Answer: garden", "Anna, park. Answer: park", "park",
             "Anna. Answer: unknown", "Anna, garden."]  # fmt: skip
    reward = qa.AnswerReward(wrong=3.0)
    assert paid(reward, tokenizer, texts, truth) == [1, -3, -3, 0, -3]
    nobody_knows = Answer("unknown", ("Tom",))
    assert paid(reward, tokenizer, ["unknown", "park"], nobody_knows) == [1, -3]
    assert reward.threshold == 0.75
    for p in (0.74, 0.76):
        gain = p * 1 + (1 - p) * -3
        assert (gain > 0) == (p > reward.threshold)
    with pytest.raises(ValueError, match="wrong=-1"):
        qa.AnswerReward(-1)


def test_steps_are_paid_on_the_mark_that_closes_them(tokenizer):
    truth = Answer("garden", ("red ball", "Anna", "garden"))
    third = pytest.approx(1 / 3)
    rows = paid(
        qa.StepReward(tokenizer), tokenizer,
        [
            "red ball, Anna, garden. Answer: park",
            "red ball, Tom, garden. Answer: garden",
            "red ball, Anna, garden, garden. Answer: garden",
            "red ball, Anna, garden",
            "Anna, garden. Answer: garden",
        ],
        truth,
    )  # fmt: skip
    assert rows[0] == [0, 0, third, 0, third, 0, third, 0, 0, 0, 0]
    assert rows[1] == [0, 0, third, *[0] * 8]
    assert sum(rows[2]) == pytest.approx(1)
    assert rows[3] == [0, 0, third, 0, third, 0, 0]
    assert sum(rows[4]) == 0


class Bigram(LanguageModel):
    """Knows the probability of each token given the one before it."""

    class Nothing:
        def keep(self, rows):
            pass

    def __init__(self, tokenizer, chances):
        super().__init__()
        self.vocab_size = len(tokenizer)
        self.table = torch.full((self.vocab_size,) * 2, 1e-9)
        for before, after in chances:
            row, column = tokenizer.vocab[before], tokenizer.vocab[after]
            self.table[row, column] = chances[before, after]

    def new_cache(self, batch, size):
        return self.Nothing()

    def forward(self, ids, mask=None, cache=None):
        return self.table[ids].log(), cache


def test_answer_takes_the_likeliest_and_says_how_sure(tokenizer):
    model = Bigram(
        tokenizer,
        {(":", "park"): 0.75, (":", "garden"): 0.25, ("park", "<eos>"): 0.8,
         ("park", "."): 0.2, ("garden", "<eos>"): 1.0},
    )  # fmt: skip
    story, question = f"Anna goes to the {qa.BLOT}.", "Where is Anna?"
    reply = qa.answer(model, tokenizer, story, question, steps=False)
    assert reply == ((), "park", pytest.approx(0.6, abs=1e-5))
    generator = torch.Generator().manual_seed(0)
    drawn = qa.answer_all(
        model, tokenizer, [qa.prompt(story, question, False)] * 600, generator
    )
    share = sum(reply.answer == "garden" for reply in drawn) / 600
    assert share == pytest.approx(0.25, abs=0.07)


@pytest.mark.parametrize(
    ("story", "question", "named"),
    [
        ("Anna goes to the moon.", "Where is Anna?", "moon"),
        ("Anna goes to the park.", "Where is the cat?", "cat"),
        ("  ", "Where is Anna?", "empty"),
        ("Anna goes to the park.", "Is Anna happy?", "Where is"),
        ("Anna goes to the park.", "Where is Anna", "Where is"),
        ("Anna goes to the park.", "Where?", "'Where is [A-Z]"),
        ("Anna goes to the park.", "Who is Anna?", "'Where is Anna[?]'"),
        (
            "Anna has a red ball.",
            "Where has the red ball?",
            "'Where is the red ball[?]'",
        ),
        (
            "Anna has some black shoes.",
            "Where is the black shoes?",
            "'Where are the bl",
        ),
        ("<pad> Anna goes to the park.", "Where is Anna?", "unknown words: <pad>"),
    ],
)
def test_what_cannot_be_answered_is_named(tokenizer, story, question, named):
    with pytest.raises(ValueError, match=named):
        qa.answer(Bigram(tokenizer, {}), tokenizer, story, question)


def test_every_question_that_the_world_asks_may_be_asked(world, tokenizer):
    model, asked = (
        Bigram(tokenizer, {(":", "park"): 1.0, ("park", "<eos>"): 1.0}),
        set(),
    )
    for example in draw(world, 300, 5, unknown=0.3):
        if example.question not in asked:
            reply = qa.answer(model, tokenizer, example.story, example.question, False)
            assert reply.answer == "park"
            asked.add(example.question)
    assert len(asked) == len(world.people) + 2 * len(world.things)


def test_measures_by_hand():
    truths = [Answer("park", ("Anna", "park")), Answer("unknown", ("Tom",)),
              Answer("school", ("red ball", "Anna", "school"))]  # fmt: skip
    examples = [qa.Example("", "Where?", truth) for truth in truths]
    replies = [qa.Reply((), "park", 0.9), qa.Reply((), "unknown", 0.5),
               qa.Reply((), "park", 0.7)]  # fmt: skip
    found = qa.measure(examples, replies)
    assert found.by_hops == {0: 1.0, 1: 1.0, 2: 0.0}
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.unknown == pytest.approx(1 / 3)
    assert (found.answered, found.confidence) == (0.5, pytest.approx(0.7))
    groups = qa.calibration(examples, replies, bins=2)
    assert groups == [(pytest.approx(0.7), pytest.approx(2 / 3), 3)]
    assert [n for *_, n in qa.calibration(examples, replies, bins=4)] == [2, 1]
    text = qa.table(examples, replies)
    assert text.count("right") == 2
    assert "wrong  : park" in text
    with pytest.raises(ValueError, match="3 questions and 2"):
        qa.measure(examples, replies[:2])


def test_shares_that_are_none_are_refused(world):
    with pytest.raises(ValueError, match="blotted=2"):
        draw(world, 1, 0, blotted=2)


# --- the shipped reader, and how it is made -------------------------------------------


def shipped(name):
    return models.load(Path(pretrained.path("reader")) / f"{name}.safetensors")


def test_the_shipped_reader_answers_and_imitation_is_as_bad_as_its_teachers(
    world, tokenizer
):
    folder = Path(pretrained.path("reader"))
    assert Tokenizer.load(folder / "tokrl.json").vocab == tokenizer.vocab
    examples = draw(world, 200, 9, part="test")
    prompts = [example.prompt() for example in examples]
    replies = {
        name: qa.answer_all(shipped(name), tokenizer, prompts)
        for name in ("imitation", "model")
    }
    assert qa.measure(examples, replies["imitation"]).accuracy < 0.8
    assert qa.measure(examples, replies["model"]).accuracy > 0.92
    story = (
        "Today, Anna is in the kitchen. Tom is in the park. Anna has a red ball. "
        "Anna goes to the park. Anna gives the red ball to Tom."
    )
    reply = qa.answer(shipped("model"), tokenizer, story, "Where is Lucy?")
    assert reply[:2] == (("Lucy",), "unknown")


def test_the_loss_of_the_reader_is_that_of_its_answers(world, tokenizer):
    generator = torch.Generator().manual_seed(0)
    model = models.build("transformer", len(tokenizer), generator, max_length=96)
    texts, total, count = [], 0.0, 0
    for example in draw(world, 6, 8):
        prompt = [tokenizer.bos_id, *tokenizer.encode(example.prompt())]
        answer = [*tokenizer.encode(qa.completion(example.truth)), tokenizer.eos_id]
        texts.append(prompt + answer)
        ids = torch.tensor([texts[-1]])
        logprobs = model(ids)[0].log_softmax(-1)
        for t in range(len(prompt), ids.shape[1]):
            total -= float(logprobs[0, t - 1, ids[0, t]].detach())
            count += 1
    loss = make_reader.answer_loss(tokenizer, story_weight=0.0)
    assert float(loss(model, texts).detach()) == pytest.approx(total / count, rel=1e-4)


def test_the_reader_can_be_made_from_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(make_reader, "HELD_OUT", 20)
    monkeypatch.setattr(make_reader, "PROMPTS", 20)
    sizes = replace(make_reader.FIT, steps=2), replace(make_reader.RL, steps=1)
    for name in ("a", "b"):
        generator = torch.Generator().manual_seed(0)
        make_reader.make(tmp_path / name, generator, *sizes, examples=100)
    made, again = (
        models.load(tmp_path / name / "model.safetensors").state_dict()
        for name in ("a", "b")
    )
    assert all(torch.equal(made[key], again[key]) for key in made)
    names = {path.name for path in (tmp_path / "a").iterdir()}
    there = Path(pretrained.path("reader")).iterdir()
    assert names == {path.name for path in there}
    assert sum(p.stat().st_size for p in (tmp_path / "a").iterdir()) < 2_000_000
