"""The world's text has the probabilities it claims, in both languages."""

import math
import random
from itertools import product

import pytest
import torch

from tokrl.world import END, LANGUAGES, World, WorldConfig


@pytest.fixture(scope="module")
def world():
    return World.default()


def stories(world, count, seed):
    return world.sample_stories(count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("lang", LANGUAGES)
def test_next_word_probs_multiply_to_the_storys_probability(world, lang):
    for story in stories(world, 40, 0):
        words = story.words(lang)
        total = 0.0
        for i, word in enumerate(words):
            total += math.log(world.next_word_probs(words[:i], lang)[word])
        assert total == pytest.approx(story.log_prob, abs=1e-9)
        assert world.log_prob(words, lang) == pytest.approx(story.log_prob, abs=1e-9)
        assert world.next_word_probs(words, lang) == {}


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("seed", range(4))
def test_next_word_probs_sum_to_one_after_every_prefix(world, lang, seed):
    """And the mass of a prefix is the mass its last word had before it was read."""
    for story in stories(world, 125, 100 + seed):
        words = tuple(story.words(lang))
        inside = None
        for i in range(len(words)):
            position = world._read(words[:i], lang)
            mass = sum(position.upcoming.values())
            clauses = len(position.steps)
            if inside and inside[1] == clauses:
                assert mass == pytest.approx(inside[0], rel=1e-12)
            else:
                assert mass == pytest.approx(1.0, abs=1e-12)
            inside = (position.upcoming[words[i]], clauses)
            probs = world.next_word_probs(words[:i], lang)
            assert sum(probs.values()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_no_two_events_are_told_in_the_same_words(world, lang):
    """So the reader may stop at the first event that it finds whole."""
    process = world._process
    for story in stories(world, 20, 5):
        for step in story.steps:
            said = {}
            for _, who in process.who(step.after):
                for _, event in process.what(step.after, who):
                    clause = process.clause(step.after, who, event)
                    for choice in product(*(range(len(s)) for s in clause.slots)):
                        words = clause.words(choice, lang)
                        assert said.setdefault(words, event) == event, words


@pytest.mark.parametrize("lang", LANGUAGES)
def test_what_was_read_before_changes_nothing(world, lang):
    """Beginnings are remembered; a world without a memory reads the same."""
    draw, forgetful = random.Random(0), World(world.config)
    vocabulary = world.vocabulary(lang)
    remembered = 0
    for story in stories(world, 200, 7):
        for _ in range(3):
            words = list(story.words(lang))
            for _ in range(draw.randrange(3)):
                source = words if draw.random() < 0.5 else vocabulary
                words[draw.randrange(len(words))] = draw.choice(source)
            words = words[: draw.randrange(len(words) + 1)]
            remembered += len(world._process.read_before)
            forgetful._process.read_before.clear()
            assert world._read(words, lang) == forgetful._read(words, lang)
    assert remembered > 0


@pytest.mark.parametrize("sentences", [1, 2])
def test_all_stories_of_a_length_sum_to_one(sentences):
    world = World.small(sentences)
    total, count, seen = 0.0, 0, {lang: set() for lang in LANGUAGES}
    nats = {lang: [0.0, 0.0] for lang in LANGUAGES}
    for story in world.all_stories():
        count += 1
        p = math.exp(story.log_prob)
        total += p
        for lang in LANGUAGES:
            words = tuple(story.words(lang))
            seen[lang].add(words)
            nats[lang][0] -= p * story.log_prob
            nats[lang][1] += p * len(words)
    assert total == pytest.approx(1.0, abs=1e-9)
    for lang in LANGUAGES:
        assert len(seen[lang]) == count, "two stories read the same"
        floor = world.entropy_rate(lang)
        assert floor.per_story == pytest.approx(nats[lang][0], abs=1e-9)
        assert floor.words == pytest.approx(nats[lang][1], abs=1e-9)
        assert floor.standard_error == 0


def test_estimated_entropy_agrees_with_the_exact_one():
    world = World.small(2)
    exact = world.entropy_rate()
    generator = torch.Generator().manual_seed(0)
    estimate = world.entropy_rate(samples=2000, generator=generator)
    assert 0 < estimate.standard_error < 0.1
    error = abs(estimate.per_story - exact.per_story)
    assert error < 4 * estimate.standard_error


def test_estimated_entropy_agrees_with_the_mean_surprise(world):
    floor = world.entropy_rate(samples=500, generator=torch.Generator().manual_seed(1))
    sample = [-story.log_prob for story in stories(world, 3000, 2)]
    mean = sum(sample) / len(sample)
    error = torch.tensor(sample).std().item() / math.sqrt(len(sample))
    assert abs(mean - floor.per_story) < 4 * math.hypot(error, floor.standard_error)


def test_exact_entropy_of_a_large_world_is_refused(world):
    with pytest.raises(ValueError, match="samples"):
        world.entropy_rate()


def test_sampling_follows_the_distribution():
    """Frequencies of whole stories against their probabilities: chi-squared."""
    world = World.small(1)
    count = 20_000
    drawn = {}
    for story in stories(world, count, 5):
        drawn[story.text()] = drawn.get(story.text(), 0) + 1
    statistic, cells, rest, rest_drawn = 0.0, 0, 0.0, 0
    for story in world.all_stories():
        expected = count * math.exp(story.log_prob)
        if expected >= 8:
            statistic += (drawn.get(story.text(), 0) - expected) ** 2 / expected
            cells += 1
        else:
            rest += expected
            rest_drawn += drawn.get(story.text(), 0)
    statistic += (rest_drawn - rest) ** 2 / rest
    assert cells > 200
    assert statistic < cells + 5 * math.sqrt(2 * cells)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_first_error_is_none_in_true_stories(world, lang):
    for story in stories(world, 200, 3):
        words = story.words(lang)
        assert world.first_error(words, lang) is None
        assert world.first_error(words[: len(words) // 2], lang) is None


@pytest.mark.parametrize("lang", LANGUAGES)
def test_first_error_finds_the_planted_error(world, lang):
    """A word is replaced by one of probability 0 there: that very index is found."""
    rng = random.Random(0)
    vocabulary = world.vocabulary(lang)
    for story in stories(world, 200, 4):
        words = story.words(lang)
        at = rng.randrange(len(words))
        possible = world.next_word_probs(words[:at], lang)
        wrong = rng.choice([word for word in vocabulary if word not in possible])
        assert world.first_error([*words[:at], wrong, *words[at + 1 :]], lang) == at
        assert world.log_prob([*words[:at], wrong, *words[at + 1 :]], lang) == -math.inf


def test_first_error_knows_the_state(world):
    scene = "Today, Anna is in the kitchen. Tom is in the garden. Anna has a red ball."
    scene += " There is a blue box in the garden."
    split = world.split

    def error(text):
        words = split(f"{scene} {text}")
        at = world.first_error(words)
        return None if at is None else words[at]

    assert error("Anna drops the red ball. She takes it in the kitchen.") is None
    assert error("Tom takes the red ball.") == "red", "it is held by Anna"
    assert error("Anna gives the red ball to Tom.") == "gives", "nobody is there"
    assert error("Anna goes to the garden and gives it to Tom.") == "it", (
        "no antecedent"
    )
    assert error("Anna goes to the garden and gives the red ball to Tom.") is None
    assert error("Anna goes to the kitchen.") == "kitchen", "she is there"
    assert error("Anna go to the garden.") == "go", "agreement"
    assert error("Anna went to the garden.") == "went", "tense"
    assert error("Tom takes the blue box. He puts the blue box") == "puts", "in itself"
    assert error("They go to the park.") == "They", "nobody acted yet"
    assert error("Anna goes to the garden. He takes") == "He", "Anna is she"
    carried = "Anna goes to the garden and puts the red ball into the blue box. "
    carried += "Tom takes the blue box. He goes to the park. "
    assert error(carried + "Anna pulls the red ball") == "pulls", "Tom has the box"
    assert error(carried + "Tom pulls the red ball out of the blue box.") is None


def test_states_follow_the_events(world):
    kinds = set()
    for story in stories(world, 300, 6):
        before = None
        for event, state in zip(story.events, story.states, strict=True):
            kinds.add(event.kind)
            if event.kind == "go":
                assert all(state.location(p) == event.target for p in event.subject)
                assert all(before.location(p) != event.target for p in event.subject)
            elif event.kind in ("take", "out"):
                assert state.holder(event.thing) == event.subject[0]
                assert before.location(event.thing) != event.subject[0]
            elif event.kind == "drop":
                assert state.location(event.thing) == state.place(event.subject[0])
            elif event.kind == "give":
                assert before.location(event.thing) == event.subject[0]
                assert state.holder(event.thing) == event.target
                assert state.place(event.target) == state.place(event.subject[0])
            elif event.kind == "put":
                assert state.location(event.thing) == event.target
                assert state.place(event.thing) == state.place(event.subject[0])
            before = state
    assert kinds == {"frame", "be", "have", "there", "go", "take", "drop", "give",
                     "put", "out", "end"}  # fmt: skip


@pytest.mark.parametrize("lang", LANGUAGES)
def test_text_splits_back_into_its_words(world, lang):
    vocabulary = set(world.vocabulary(lang))
    longest = 0
    for story in stories(world, 300, 7):
        words = story.words(lang)
        assert words[-1] == END
        assert world.split(story.text(lang), lang) == words[:-1]
        assert vocabulary.issuperset(words)
        longest = max(longest, len(words))
    assert longest <= world.max_words(lang)


@pytest.mark.parametrize("source", LANGUAGES)
def test_translation_is_exact_both_ways(world, source):
    (target,) = set(LANGUAGES) - {source}
    for story in stories(world, 100, 8):
        words, there = story.words(source), story.words(target)
        assert world.translate(words, source, target) == there
    wrong = [*words[:5], words[4], *words[5:]]
    with pytest.raises(ValueError, match="impossible"):
        world.translate(wrong, source, target)


@pytest.mark.parametrize("small", [True, False])
def test_the_vocabulary_is_what_occurs(small):
    config = {"people": 3, "places": 3, "things": 3, "cast_things": 2}
    world = World.small(3) if small else World(WorldConfig(**config))
    for lang in LANGUAGES:
        seen = {w for s in stories(world, 3000, 9) for w in s.words(lang)}
        assert seen == set(world.vocabulary(lang))


def test_a_seed_decides_the_story(world):
    texts = [[s.text() for s in stories(world, 5, seed)] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("people", 9), ("people", 0), ("places", 1), ("things", "3"), ("pronoun", 1.2),
        ("cast_people", 9), ("min_sentences", 9), ("tenses", ("future",)),
        ("tenses", ()), ("stay", -1.0), ("lure", 0.0), ("verbs", 3),
    ],
)  # fmt: skip
def test_a_wrong_configuration_names_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        WorldConfig(**{field: value})


def test_wrong_arguments_are_named(world):
    with pytest.raises(ValueError, match="'fr'"):
        world.next_word_probs([], "fr")
    with pytest.raises(TypeError, match="split"):
        world.first_error("Today, Anna")
    state = stories(world, 1, 0)[0].states[-1]
    with pytest.raises(KeyError, match="unicorn"):
        state.location("unicorn")


def test_a_world_comes_back_from_its_configuration(world):
    again = World(WorldConfig(**world.to_dict()))
    assert again.config == world.config


@pytest.mark.parametrize("most", [0, 1.5, "5", math.inf])
def test_the_most_sentences_are_a_whole_number(most):
    with pytest.raises(ValueError, match=f"max_sentences={most!r}"):
        WorldConfig(max_sentences=most)
