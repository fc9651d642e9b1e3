"""Generation: measured against stories whose probability and end are known."""

import json
import math
from pathlib import Path

import pytest
import torch

from tokrl import models, pretrained
from tokrl.apps.generation import (
    SCENE,
    WRITER,
    EndStateReward,
    ProgressReward,
    continue_text,
    encode_story,
    examine,
    examples,
    kl_from_truth,
    rest,
    scene,
    true_logprobs,
    within_reach,
    write,
)
from tokrl.pretrained import make_writer
from tokrl.rewards import ValidityReward
from tokrl.tokenizers import BPETokenizer, Tokenizer, WordTokenizer
from tokrl.training import FitConfig, evaluate
from tokrl.world import World, WorldConfig

PROMPT = "Today, Anna is in the park. Tom is in the garden. Anna has a red ball."
GOOD = " Anna goes to the garden. Tom walks to the park."


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def world():
    return World(WRITER)


@pytest.fixture(scope="module")
def tokenizer(world):
    return WordTokenizer.train([world.vocabulary()])


@pytest.fixture
def model(tokenizer):
    shape = {"width": 16, "layers": 1, "heads": 2, "max_length": 40}
    return models.build("transformer", len(tokenizer), seeded(2), **shape)


def completion(tokenizer, text, ended=True):
    return tokenizer.encode(text) + [tokenizer.eos_id] * ended


# --- data -----------------------------------------------------------------------------


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_scene_and_the_rest_are_the_story(world, lang):
    stories = world.sample_stories(50, seeded())
    tokenizer = WordTokenizer.train([world.vocabulary(lang)])
    for story in stories:
        begin, ids = scene(story, lang), rest(story, tokenizer, lang)
        assert story.text(lang).startswith(begin)
        assert ids[-1] == tokenizer.eos_id
        whole = [tokenizer.bos_id, *tokenizer.encode(begin), *ids]
        assert whole == encode_story(story, tokenizer, lang)
    events = [event.kind for event in stories[0].events]
    told = next(i for i, kind in enumerate(events) if kind in ("go", "take", "drop"))
    assert "there" in events[:told] or "have" in events[:told]
    assert world.split(scene(stories[0]))[-1] == "."


# --- writing --------------------------------------------------------------------------


def test_texts_begin_with_the_prompt_and_a_seed_decides_the_rest(model, tokenizer):
    texts = continue_text(model, tokenizer, PROMPT, 3, seeded(1))
    assert len(set(texts)) == 3
    assert all(text.startswith(PROMPT) for text in texts)
    assert texts == continue_text(model, tokenizer, PROMPT, 3, seeded(1))
    assert texts != continue_text(model, tokenizer, PROMPT, 3, seeded(2))
    greedy = continue_text(model, tokenizer, PROMPT, 2, seeded(1), top_k=1)
    assert greedy[0] == greedy[1]
    assert [greedy[0]] == continue_text(model, tokenizer, PROMPT, beam=1)


def test_completions_end_once_or_fill_the_model(model, tokenizer):
    sizes = set()
    prompts = [PROMPT, ""] * 30
    rows = write(model, tokenizer, prompts, seeded())
    for prompt, ids in zip(prompts, rows, strict=True):
        assert ids.count(tokenizer.eos_id) == (ids[-1] == tokenizer.eos_id)
        sizes.add(len(ids))
        assert len(tokenizer.encode(prompt)) + len(ids) + 1 <= model.max_length
    assert len(sizes) > 2


def test_what_cannot_be_continued_is_named(model, tokenizer):
    with pytest.raises(ValueError, match=r"'dragon'.*'kichen' \(like 'kitchen'"):
        continue_text(model, tokenizer, "Today, a dragon is in the kichen.")
    with pytest.raises(ValueError, match=r"51 tokens.*reads 40"):
        continue_text(model, tokenizer, "Anna " * 50)
    with pytest.raises(ValueError, match="count=0"):
        continue_text(model, tokenizer, count=0)
    with pytest.raises(ValueError, match="count=2"):
        continue_text(model, tokenizer, count=2, beam=4)
    with pytest.raises(ValueError, match="temperature"):
        continue_text(model, tokenizer, beam=4, temperature=0.5)
    with pytest.raises(ValueError, match="temperature=0"):
        continue_text(model, tokenizer, temperature=0)


# --- measuring ------------------------------------------------------------------------


def test_errors_are_counted_by_hand(world, tokenizer):
    rows = [
        completion(tokenizer, GOOD),  # 13 tokens, judged all
        completion(tokenizer, " Anna goes to the park. Tom walks to the park."),  # 5
        completion(tokenizer, " Anna goes to the garden."),  # ends too early: 7
        completion(tokenizer, " Anna goes to the garden.", ended=False),  # 6
    ]
    found = examine([PROMPT] * 4, rows, ValidityReward(world, tokenizer))
    assert found.valid == 2 / 4
    assert found.errors_per_100 == pytest.approx(100 * 2 / (13 + 5 + 7 + 6))
    assert found.length == (13 + 13 + 7 + 6) / 4
    # 4-grams: 10 + 10 + 4 + 3. New in row 2 are `goes to the park`, `the park . Tom`
    # and `park . Tom walks`, in row 3 `the garden . <eos>`, in row 4 none.
    assert found.distinct_4 == pytest.approx((10 + 3 + 1) / 27)


def test_the_world_makes_no_errors_and_sums_to_its_own_probability(world, tokenizer):
    stories = world.sample_stories(6, seeded(3))
    prompts = [""] * 6
    rows = [encode_story(story, tokenizer)[1:] for story in stories]
    found = examine(prompts, rows, ValidityReward(world, tokenizer))
    assert (found.valid, found.errors_per_100) == (1, 0)
    logprobs, mask = true_logprobs(world, tokenizer, prompts, rows)
    assert mask.sum(-1).tolist() == list(map(len, rows))
    for story, ids, row in zip(stories, rows, logprobs, strict=True):
        chosen = row[torch.arange(len(ids)), ids]
        assert float(chosen.sum()) == pytest.approx(story.log_prob)


def test_the_truth_ends_with_the_first_error(world, tokenizer):
    wrong = completion(tokenizer, " Anna goes to the park. Tom walks to the park.")
    logprobs, mask = true_logprobs(world, tokenizer, [PROMPT], [wrong])
    assert mask[0].tolist() == [1] * 5 + [0] * 8
    assert logprobs[0, 4, tokenizer.vocab["park"]] == -math.inf
    assert logprobs[0, 4].exp().sum() == pytest.approx(1)


def test_kl_summed_over_all_stories_is_that_of_the_distributions():
    """sum_y P(y) sum_t KL_t = sum_y P(y) log P(y) / Q(y), with every y written down."""
    world = World(
        WorldConfig(
            people=2, places=2, things=1, cast_people=1, cast_things=1, min_sentences=1,
            max_sentences=1, tenses=("past",), verbs=1, time=0.0, manner=0.0, join=0.0,
            mention_place=0.0,
        )
    )  # fmt: skip
    stories = list(world.all_stories())
    assert sum(math.exp(story.log_prob) for story in stories) == pytest.approx(1)
    assert len(stories) > 10
    tokenizer = WordTokenizer.train([world.vocabulary()])
    shape = {"width": 16, "layers": 1, "heads": 2, "max_length": 40}
    model = models.build("transformer", len(tokenizer), seeded(4), **shape)
    by_tokens = by_stories = 0.0
    for story in stories:
        text = encode_story(story, tokenizer)
        truth = true_logprobs(world, tokenizer, [""], [text[1:]])
        kl = kl_from_truth(model, tokenizer, [""], [text[1:]], truth)
        nats = evaluate(model, [text]) * (len(text) - 1)
        by_tokens += math.exp(story.log_prob) * kl * (len(text) - 1)
        by_stories += math.exp(story.log_prob) * (story.log_prob + nats)
    assert by_tokens == pytest.approx(by_stories)
    assert by_tokens > 1


def test_kl_is_a_mean_over_possible_places(world, tokenizer, model):
    """Longer rows weigh more, and what follows an error nothing."""
    right = completion(tokenizer, GOOD)
    cut = completion(tokenizer, " Anna goes to the park")
    more = completion(tokenizer, " Anna goes to the park. Tom walks to the park.")

    def kl(*rows):
        prompts = [PROMPT] * len(rows)
        truth = true_logprobs(world, tokenizer, prompts, rows)
        return kl_from_truth(model, tokenizer, prompts, rows, truth)

    assert kl(cut[:-1]) == pytest.approx(kl(more))
    expected = (13 * kl(right) + 5 * kl(more)) / 18
    assert kl(right, more) == pytest.approx(expected)


def test_without_impossible_tokens_the_kl_is_less_by_what_they_had(
    world, tokenizer, model
):
    """KL(p, q / (1 - leak)) = KL(p, q) + log(1 - leak), place by place."""
    ids = completion(tokenizer, GOOD)
    truth = true_logprobs(world, tokenizer, [PROMPT], [ids])
    text = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(PROMPT), *ids]])
    probs = model(text)[0][0, -len(ids) - 1 : -1].softmax(-1)
    kept = (probs * (truth[0][0] > -math.inf)).sum(-1)  # 1 - leak
    whole, cut = (
        kl_from_truth(model, tokenizer, [PROMPT], [ids], truth, cut=cut)
        for cut in (False, True)
    )
    assert cut == pytest.approx(whole + float(kept.detach().log().mean()))
    assert 0 < cut < whole / 2


def test_tokens_that_are_never_drawn_are_infinitely_far(world, tokenizer, model):
    """By hand, place by place: ranks decide what top-k and top-p leave possible."""
    ids = completion(tokenizer, GOOD)
    truth = true_logprobs(world, tokenizer, [PROMPT], [ids])
    text = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(PROMPT), *ids]])
    logits = model(text)[0][0, -len(ids) - 1 : -1].detach()

    def kl(**choice):
        return kl_from_truth(model, tokenizer, [PROMPT], [ids], truth, **choice)

    p = truth[0][0].exp()
    cold = (logits / 0.5).log_softmax(-1)
    by_hand = torch.where(p > 0, p * (truth[0][0] - cold), 0.0).sum(-1).mean()
    assert kl(temperature=0.5) == pytest.approx(float(by_hand))
    assert kl(temperature=1.0, top_k=0, top_p=1.0) == kl()
    # The rank of the last of the possible tokens, of all places, is the k that it takes
    ranks = logits.argsort(-1, descending=True).argsort(-1)
    needed = int(ranks[p > 0].max()) + 1
    assert kl(top_k=needed - 1) == math.inf
    # What was cut off is shared out: KL(p, q / kept) = KL(p, q) + log kept.
    kept = logits.softmax(-1).topk(needed, -1).values.sum(-1).log().mean()
    assert kl(top_k=needed) == pytest.approx(kl() + float(kept))

    def reach(rows, **choice):
        return within_reach(model, tokenizer, [PROMPT] * len(rows), rows, **choice)

    own = int(ranks[torch.arange(len(ids)), torch.tensor(ids)].max()) + 1
    greedy = write(model, tokenizer, [PROMPT], top_k=1)[0]
    assert reach([ids], top_k=own) == 1
    assert reach([ids, greedy], top_k=own - 1) == 0.5
    assert reach([ids, greedy], top_k=1) == 0.5
    assert reach([ids, ids[:3]], temperature=0.3) == 1
    drawn = write(model, tokenizer, [PROMPT] * 20, seeded(), top_p=0.6)
    assert reach(drawn, top_p=0.6) == 1
    assert reach(drawn, top_p=0.1) < 1


def test_texts_are_cut_where_enough_is_counted(world, tokenizer, monkeypatch):
    rows = [completion(tokenizer, GOOD)] * 3  # 10 4-grams each, all different
    judge = ValidityReward(world, tokenizer)
    for most, expected in ((10, 1), (15, 10 / 15), (30, 10 / 30), (99, 10 / 30)):
        monkeypatch.setattr("tokrl.apps.generation.GRAMS", most)
        found = examine([PROMPT] * 3, rows, judge).distinct_4
        assert found == pytest.approx(expected)


# --- a goal ---------------------------------------------------------------------------


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("config", [WRITER, WorldConfig(people=3, places=3, things=4)])
def test_the_end_state_is_the_storys(config, lang):
    world = World(config)
    stories = world.sample_stories(150, seeded(5))
    tokenizer = WordTokenizer.train([world.vocabulary(lang)])
    reward = EndStateReward(world, tokenizer, "red ball", "garden", lang)
    prompts = [scene(story, lang) for story in stories]
    ids = [rest(story, tokenizer, lang) for story in stories]
    expected = [
        float(
            "red ball" in story.states[-1].things
            and story.states[-1].place("red ball") == "garden"
        )
        for story in stories
    ]
    assert reward(prompts, [""] * 150, ids) == expected
    assert 0 < sum(expected) < 75
    assert sum(reward(prompts, [""] * 150, [row[:-1] for row in ids])) == 0


def test_a_story_with_an_error_does_not_reach_the_goal(world, tokenizer):
    reward = EndStateReward(world, tokenizer, "red ball", "garden")
    endings = {
        GOOD: 1.0,  # Anna carries it there
        " Anna drops the red ball. Anna goes to the garden.": 0.0,
        " Anna goes to the garden. Anna goes to the garden.": 0.0,  # is there
        " Anna goes to the garden.": 0.0,  # no story is as short
    }
    for text, expected in endings.items():
        assert reward([PROMPT], [text], [completion(tokenizer, text)]) == [expected]


def test_other_tokens_reach_the_same_end(world):
    stories = world.sample_stories(150, seeded(6))
    texts = [story.text() for story in stories]
    bpe, word = BPETokenizer.train(texts, 300), WordTokenizer.train(texts)
    found = []
    for tokenizer in (bpe, word):
        reward = EndStateReward(world, tokenizer, "red ball", "garden")
        ids = [encode_story(story, tokenizer)[1:] for story in stories]
        found.append(reward([""] * 150, texts, ids))
    assert found[0] == found[1]
    assert sum(found[0]) > 0


def test_a_goal_must_be_of_this_world(world, tokenizer):
    with pytest.raises(ValueError, match=r"'dragon'.*red ball"):
        EndStateReward(world, tokenizer, "dragon", "garden")
    with pytest.raises(ValueError, match=r"'moon'.*garden"):
        EndStateReward(world, tokenizer, "red ball", "moon")


def test_progress_is_paid_where_it_is_made(world, tokenizer):
    reward = ProgressReward(EndStateReward(world, tokenizer, "red ball", "garden"))

    def paid(text):
        ids = completion(tokenizer, text)
        (row,) = reward([PROMPT], [text], [ids])
        assert len(row) == len(ids)
        return {t: r for t, r in enumerate(row) if r}

    assert paid(GOOD) == {5: 1.0}  # Anna goes to the garden .
    back = " Anna goes to the garden and goes to the park."
    assert paid(back) == {5: 1.0, 10: -1.0}  # and closes a clause as well
    assert paid(" Anna goes to the garden. Anna goes to the garden.") == {5: 1.0}
    assert paid(" Anna drops the red ball. Anna goes to the garden.") == {}
    assert paid(" Tom goes to the park. Anna goes to the garden") == {}
    bpe = EndStateReward(world, BPETokenizer.train([PROMPT], 300), "red ball", "garden")
    with pytest.raises(ValueError, match="BPETokenizer"):
        ProgressReward(bpe)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_progress_adds_up_to_the_end_less_the_beginning(lang):
    world = World(WorldConfig(people=3, places=3, things=2))
    tokenizer = WordTokenizer.train([world.vocabulary(lang)])
    goal = EndStateReward(world, tokenizer, "red ball", "garden", lang)
    sums = set()
    for story in world.sample_stories(150, seeded(9)):
        ids = rest(story, tokenizer, lang)
        (row,) = ProgressReward(goal)([scene(story, lang)], [""], [ids])
        told = [step for step in story.steps if step.event.kind in SCENE]
        start, end = told[-1].after.state, story.states[-1]
        assert sum(row) == goal.holds(end) - goal.holds(start)
        sums.add(sum(row))
    assert sums == {-1.0, 0.0, 1.0}


# --- reading --------------------------------------------------------------------------


def test_examples_mark_the_first_error(world, tokenizer):
    judge = ValidityReward(world, tokenizer)
    rows = [
        completion(tokenizer, GOOD),
        completion(tokenizer, " Anna goes to the park. Tom walks to the park."),
        completion(tokenizer, " Anna goes to the garden."),
    ]
    good, wrong, early = examples([PROMPT] * 3, rows, judge).split("\n\n")
    assert good == PROMPT + "\n  " + GOOD.strip()
    assert "Anna goes to the **park. Tom" in wrong
    assert early.endswith("garden. **(the end)")
    narrow = examples([PROMPT], rows[1:2], judge, width=30).splitlines()
    assert max(map(len, narrow)) <= 30
    assert " ".join(map(str.strip, narrow)) == " ".join(wrong.split())


# --- town-writer ----------------------------------------------------------------------


def test_the_writer_is_as_good_as_its_card_says(world):
    folder = Path(pretrained.path("writer"))
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1e6
    card = (folder / "README.md").read_text(encoding="utf-8")
    measured = (folder / "measured.json").read_text(encoding="utf-8")
    assert measured.strip() in card
    assert World(WorldConfig(**json.loads((folder / "world.json").read_text()))).config
    tokenizer = Tokenizer.load(folder / "tokrl.json")
    writer = models.load(folder / "model.safetensors").double()
    stories = world.sample_stories(200, seeded(7), part="test")
    prompts = [scene(story) for story in stories]
    made = write(writer, tokenizer, prompts, seeded(8))
    found = examine(prompts, made, ValidityReward(world, tokenizer))
    said = json.loads(measured)["test"]
    assert found.valid == pytest.approx(said["share possible"], abs=0.12)
    texts = [encode_story(story, tokenizer) for story in stories]
    nats = evaluate(writer, texts) * (sum(map(len, texts)) / 200 - 1)
    floor = -sum(story.log_prob for story in stories) / 200
    above = said["model, nats per story"] - said["floor, nats per story"]
    assert nats - floor == pytest.approx(above, abs=0.5)


def test_it_is_made_from_nothing_and_the_seed_decides_it(tmp_path, monkeypatch):
    monkeypatch.setattr(make_writer, "HELD_OUT", 20)
    torch.set_default_dtype(torch.float32)
    config = FitConfig(steps=12, batch_size=8, learning_rate=1e-2, eval_every=0)
    found = []
    for seed in (0, 0, 1):
        make_writer.make(tmp_path / "writer", seeded(seed), config)
        found.append(models.load(tmp_path / "writer" / "model.safetensors"))
    first, again, other = (model.state_dict() for model in found)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["norm.weight"], other["norm.weight"])
    card = (tmp_path / "writer" / "README.md").read_text(encoding="utf-8")
    assert "96 stories" in card
    assert [path.name for path in tmp_path.iterdir()] == ["writer"]
