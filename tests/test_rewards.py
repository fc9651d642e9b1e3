"""Rewards: what they pay and where, by enumeration and by hand; what they refuse."""

import itertools
import math
import random
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokrl import pretrained
from tokrl.advantages import returns_to_go
from tokrl.rewards import (
    CombinedReward,
    EndingReward,
    FluencyReward,
    LearnedReward,
    LengthReward,
    MentionReward,
    OverlongReward,
    PotentialShaping,
    RewardError,
    RewardModel,
    ValidityReward,
    as_sequence_reward,
    error_examples,
    error_loss,
    judge,
    overlong_penalty,
    possible_bytes,
    spoilt,
    token_bytes,
    token_reward_matrix,
)
from tokrl.rewards.pieces import text_so_far
from tokrl.tokenizers import (
    BPETokenizer,
    CharTokenizer,
    WordPieceTokenizer,
    WordTokenizer,
)
from tokrl.training import FitConfig, fit
from tokrl.world import END, LANGUAGES, World

KINDS = ("word", "character", "character-unk", "bpe-300", "bpe-2000", "wordpiece")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def train(kind, stories, lang):
    texts = [story.text(lang) for story in stories]
    if kind == "word":
        return WordTokenizer.train(story.words(lang) for story in stories)
    if kind.startswith("character"):
        return CharTokenizer.train(texts, byte_fallback=kind == "character")
    if kind == "wordpiece":
        return WordPieceTokenizer.train(texts, 200)
    return BPETokenizer.train(texts, int(kind.removeprefix("bpe-")))


def on_one(reward, ids, prompt="", completion=""):
    """What a reward pays for one completion, called as TRL calls it."""
    (row,) = reward(
        prompts=[prompt], completions=[completion], completion_ids=[ids],
        trainer_state=None, log_metric=print, answer=["42"],
    )  # fmt: skip
    return row


@pytest.fixture(scope="module")
def small():
    """The small world with all its stories."""
    world = World.small(1)
    return world, list(world.all_stories())


@pytest.fixture(scope="module")
def default():
    world = World.default()
    return world, world.sample_stories(300, seeded())


# What each token writes


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_of_tokens_join_to_the_text(default, kind, lang):
    _, stories = default
    tokenizer = train(kind, stories, lang)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.integers(0, len(tokenizer) - 1), max_size=12))
    def any_ids(ids):
        text, pieces = tokenizer.decode(ids), token_bytes(tokenizer, ids)
        assert len(pieces) == len(ids)
        whole = b"".join(pieces).decode(errors="replace")
        if "\ufffd" not in whole:  # bytes that spell nothing are marked in other ways
            assert whole == text
        for i, piece in zip(ids, pieces, strict=True):
            silent = i in (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)
            assert (piece == b"") == silent

    any_ids()
    for story in stories[:5]:
        pieces = token_bytes(tokenizer, tokenizer.encode(story.text(lang)))
        assert b"".join(pieces) == story.text(lang).encode()


# Validity


def beginnings(stories, lang):
    """All that a story may begin with, in bytes and in words; and the whole ones."""
    texts, words, whole = set(), set(), set()
    for story in stories:
        data = story.text(lang).encode()
        texts.update(data[:i] for i in range(len(data) + 1))
        whole.add(data)
        row = tuple(story.words(lang))
        words.update(row[:i] for i in range(len(row) + 1))
    return texts, words, whole


def first_error_by_enumeration(known, tokenizer, ids):
    """The first token after which no story of the list begins with the text so far."""
    texts, words, whole = known
    for t in range(len(ids)):
        now = ids[: t + 1]
        if isinstance(tokenizer, WordTokenizer):
            names = [END if i == 2 else tokenizer.to_tokens([i])[0] for i in now]
            possible = tuple(names) in words
        elif 0 in now or 1 in now or 2 in now[:-1]:
            possible = False
        else:
            data = b"".join(token_bytes(tokenizer, now))
            possible = data in (whole if now[-1] == 2 else texts)
        if not possible:
            return t
    return None


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_validity_finds_the_token_that_enumeration_finds(small, kind, lang):
    world, stories = small
    tokenizer = train(kind, stories, lang)
    known = beginnings(stories, lang)
    reward, rng = ValidityReward(world, tokenizer, lang), random.Random(1)
    found = set()
    for story in rng.sample(stories, 60):
        ids = [*tokenizer.encode(story.text(lang)), tokenizer.eos_id]
        at, other = rng.randrange(len(ids)), rng.choice(rng.choice(stories).words(lang))
        swapped = [*ids[:at], *ids[at + 1 : at + 2], ids[at], *ids[at + 2 :]]
        for changed in (
            ids,
            ids[:at],
            swapped,
            [*ids[:at], rng.randrange(len(tokenizer)), *ids[at + 1 :]],
            [*ids[:at], *tokenizer.encode(other), *ids[at:]],
            [*ids, *ids[:2]],
        ):
            if not changed:
                continue
            expected = first_error_by_enumeration(known, tokenizer, changed)
            row = on_one(reward, changed)
            if expected is None:
                assert row == [0.0] * len(changed)
            else:
                assert row[: expected + 1] == [0.0] * expected + [-1.0]
                assert row[expected + 1 :] == [None] * (len(changed) - expected - 1)
            found.add(expected is None)
            # The same with part of it as the prompt: only the counting starts later.
            cut = rng.randrange(at + 1)
            prompt = tokenizer.decode(changed[:cut])
            if changed[cut:] and tokenizer.encode(prompt) == changed[:cut]:
                later = None if expected is None else max(expected - cut, 0)
                assert reward.first_error(prompt, changed[cut:]) == later
    assert found == {True, False}


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_story_is_possible_up_to_any_byte(default, lang):
    world, stories = default
    for story in stories[:3]:
        data = story.text(lang).encode()
        for end in range(len(data) + 1):
            assert possible_bytes(world, data[:end], lang) == end
            assert possible_bytes(world, data[:end] + b"\xff", lang) == end


SCENE = "Today, Tom is in the kitchen. Anna is in the garden. Tom has a red ball."
SCENE += " Anna has a blue box."


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (" Tom go", None),  # es
        (" Tom goes to the gard", None),
        (" Tom go to", " Tom go "),
        (" Tom  goes", " Tom  "),
        (" Tom goes to the\ngarden", " Tom goes to the\n"),
        (" Tom goes to the kitchen", " Tom goes to the k"),  # there he is
        (" Tom takes the box", " Tom t"),  # nothing lies there that he could take
        (" Tom drops the blue", " Tom drops the b"),  # he has no such thing
        ("Tom", "T"),  # a space is missing
    ],
)
def test_validity_by_hand(default, text, wrong):
    """Character by character: what was written when it was too late."""
    world, stories = default
    tokenizer = train("character", stories, "en")
    at = ValidityReward(world, tokenizer).first_error(SCENE, tokenizer.encode(text))
    assert (None if at is None else text[: at + 1]) == wrong


def test_validity_of_special_tokens_and_prompts(default):
    world, stories = default
    tokenizer = BPETokenizer.train([story.text() for story in stories], 400)
    reward = ValidityReward(world, tokenizer)
    eos, pad, tom = tokenizer.eos_id, tokenizer.pad_id, tokenizer.encode(" Tom")
    assert reward.first_error(SCENE, tom) is None
    assert reward.first_error(SCENE, [*tom, eos]) == len(tom), "no end of a story"
    assert reward.first_error(SCENE, [*tom, pad, *tom]) == len(tom)
    assert reward.first_error(SCENE + "  Oh", tom) == 0, "the prompt is wrong"
    whole = tokenizer.encode(stories[0].text())
    assert reward.first_error("", [*whole, eos]) is None
    assert reward.first_error("", [*whole, eos, pad]) == len(whole) + 1
    assert reward.first_error("", [eos]) == 0
    on = next(s for s in stories if len(world.next_word_probs(s.words()[:-1])) > 1)
    spaced = tokenizer.encode(on.text() + " ")
    assert reward.first_error("", spaced) is None
    assert reward.first_error("", [*spaced, eos]) == len(spaced), "a space at the end"
    spelt = [
        i for part in (" To", "m go", "es t", "o th") for i in tokenizer.encode(part)
    ]
    assert spelt != tokenizer.encode(" Tom goes to th")
    assert reward.first_error(SCENE, spelt) is None, "in tokens of its own"


def test_half_a_character_is_judged_by_its_bytes(default):
    """厨 is E5 8E A8: after E5 8E may follow; 8F, of another character, may not."""
    world, stories = default
    tokenizer = CharTokenizer.train(["x"])  # all of Chinese in bytes
    reward = ValidityReward(world, tokenizer, "zh")
    story = next(story for story in stories if "厨" in story.text("zh"))
    before = tokenizer.encode(story.text("zh").split("厨")[0])
    right = tokenizer.to_ids(["<0xE5>", "<0x8E>", "<0xA8>"])
    wrong = tokenizer.to_ids(["<0xE5>", "<0x8F>", "<0xA8>"])
    assert reward.first_error("", before + right) is None
    assert reward.first_error("", before + right[:2]) is None
    assert reward.first_error("", before + wrong) == len(before) + 1


def test_validity_is_fast(default):
    """64 completions of 60 BPE tokens: about 0.1 s of a processor, at most 0.5."""
    world, stories = default
    tokenizer = BPETokenizer.train([story.text() for story in stories], 500)
    reward, rng = ValidityReward(world, tokenizer), random.Random(0)
    batch = [tokenizer.encode(story.text())[:60] for story in stories[:64]]
    for row in batch:
        row[rng.randrange(len(row))] = rng.choice(row)
    start = time.process_time()
    reward([""] * 64, [""] * 64, batch)
    assert time.process_time() - start < 0.5


# Fluency


@pytest.mark.parametrize("kind", ["word", "bpe-300", "character"])
def test_fluency_sums_to_the_log_prob_of_a_story(small, kind):
    world, stories = small
    tokenizer = train(kind, stories, "en")
    for story in stories[::500]:
        ids = [*tokenizer.encode(story.text()), tokenizer.eos_id]
        row = on_one(FluencyReward(world, tokenizer), ids)
        assert math.fsum(row) == pytest.approx(story.log_prob, abs=1e-9)
        half = len(ids) // 2
        rest = on_one(
            FluencyReward(world, tokenizer), ids[half:], tokenizer.decode(ids[:half])
        )
        assert rest == pytest.approx(row[half:])


def test_an_impossible_token_costs_a_finite_number_of_nats(small):
    world, stories = small
    tokenizer = train("word", stories, "en")
    ids = tokenizer.encode(stories[0].text())
    reward = FluencyReward(world, tokenizer, least=-7.0)
    row = on_one(reward, [*ids[:4], tokenizer.unk_id, *ids[4:]])
    assert row[4:] == [-7.0] + [None] * (len(ids) - 4)
    assert row[:4] == on_one(FluencyReward(world, tokenizer), ids)[:4]
    exact = on_one(FluencyReward(world, tokenizer), ids)
    row = on_one(FluencyReward(world, tokenizer, least=-0.5), ids)
    assert row == [max(value, -0.5) for value in exact], "possible ones are held up too"
    assert min(exact) < -0.5
    for least in (0, -math.inf, math.nan):
        with pytest.raises(ValueError, match="least="):
            FluencyReward(world, tokenizer, least=least)


# Lengths and keywords


def test_lengths_by_hand():
    batch = [[5], [5, 6, 7]]
    assert LengthReward(-0.5)(["", ""], ["", ""], batch) == [[-0.5], [-0.5] * 3]
    lengths = [1, 15, 16, 17, 18, 19, 20, 30]
    paid = [overlong_penalty(n, 20, 4) for n in lengths]
    assert paid == [0, 0, 0, -0.25, -0.5, -0.75, -1, -1]
    reward = OverlongReward(20, 4)
    assert reward([""] * 8, [""] * 8, [[0] * n for n in lengths]) == paid
    for cushion in (0, -1, 21):
        with pytest.raises(ValueError, match=f"cushion={cushion}.*max_length=20"):
            OverlongReward(20, cushion)


@pytest.mark.parametrize(
    ("keyword", "text", "written"),
    [
        ("red", "Anna has a red ball.", "Anna has a red"),
        ("red ball", "a red box, the red ball, a red ball.", "a red box, the red ball"),
        ("ball", "There was a balloon.", None),
        ("Red", "a red ball", None),
        ("厨房", "汤姆在厨房。", "汤姆在厨房"),
        ("厨房", "汤姆在花园。", None),
    ],
)
@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_a_mention_is_paid_when_it_is_there(kind, keyword, text, written):
    texts = [text, "a red ball balloon", "厨房"]
    if kind == "bpe":
        tokenizer = BPETokenizer.train(texts * 2, 400)
    else:
        known = [["汤姆", "在", "厨房", "花园", "。"], ["balloon"]]
        tokenizer = WordTokenizer.train([*texts, *known])
    ids = tokenizer.encode(text)
    row = on_one(MentionReward(keyword, tokenizer), ids)
    if written is None:
        assert row == [0.0] * len(ids)
    else:
        at = row.index(1.0)
        assert sum(row) == 1
        assert tokenizer.decode(ids[: at + 1]) == written


def test_a_mention_does_not_wait_for_later_tokens():
    tokenizer = CharTokenizer.train(["redder"])
    ids = tokenizer.encode("redder")
    for size in range(1, 7):
        row = on_one(MentionReward("red", tokenizer), ids[:size])
        assert row == [0.0, 0.0, 1.0, 0.0, 0.0, 0.0][:size]


def test_endings():
    texts = ["He goes home.", "He goes home!)", "home, he goes", "", "gohome.", "Home"]
    paid = EndingReward("home")([""] * 6, texts, [[1]] * 6)
    assert paid == [1, 1, 0, 0, 0, 0]
    texts = ["他在厨房。", "他在大厨房", "厨房里"]
    assert EndingReward("厨房")([""] * 3, texts, [[1]] * 3) == [1, 1, 0]
    assert EndingReward("red ball.")([""], ["the red ball"], [[1]]) == [1]
    for wrong in ("", " ", "..."):
        with pytest.raises(ValueError, match="keyword="):
            EndingReward(wrong)
        with pytest.raises(ValueError, match="keyword="):
            MentionReward(wrong, None)


# Laying rewards over tokens: what is accepted, what is refused

IDS = [[4, 5, 6], [4]]
MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])


def returning(value):
    def strange(**_):
        return value

    return strange


def matrix(value):
    return token_reward_matrix(
        returning(value), ["first", "second"], ["a b c", "a"], IDS, MASK
    )


@pytest.mark.parametrize(
    "returned",
    [
        [0.5, 2],
        [0.5, np.float32(2)],
        (0.5, 2.0),
        np.array([0.5, 2.0]),
        torch.tensor([0.5, 2.0], requires_grad=True),
        [torch.tensor(0.5), np.array(2)],
        [[0.0, 0.0, 0.5], [2.0]],
        [torch.tensor([0.0, 0.0, 0.5]), np.array([2.0])],
        [[False, torch.tensor(0), np.float64(0.5)], 2.0],
        (value for value in [0.5, 2.0]),
    ],
)
def test_numbers_come_in_many_forms(returned):
    rewards, kept = matrix(returned)
    assert rewards.tolist() == [[0.0, 0.0, 0.5], [2.0, 0.0, 0.0]]
    assert torch.equal(kept, MASK)
    assert kept.dtype == MASK.dtype
    assert rewards.dtype == torch.get_default_dtype()
    assert not rewards.requires_grad


def test_no_completions_have_no_rewards():
    rewards, kept = token_reward_matrix(returning([]), [], [], [], MASK[:0])
    assert rewards.shape == kept.shape == (0, 3)


def test_none_ends_the_episode():
    rewards, kept = matrix([[0.5, -1.0, None], [3.0]])
    assert rewards.tolist() == [[0.5, -1.0, 0.0], [3.0, 0.0, 0.0]]
    assert kept.tolist() == [[1, 1, 0], [1, 0, 0]]
    assert MASK.tolist() == [[1, 1, 1], [1, 0, 0]]


SECOND = "reward 'strange', completion 1 of prompt 'second': "


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "reward 'strange' returned a NoneType for 2 completions"),
        (1.0, "reward 'strange' returned a float for 2 completions"),
        ("ab", "reward 'strange' returned a str for 2 completions"),
        ({0: 1.0, 1: 1.0}, "reward 'strange' returned a dict for 2 completions"),
        ([1.0], "reward 'strange' returned 1 values for 2 completions"),
        (torch.ones(3), "reward 'strange' returned 3 values for 2 completions"),
        ([0.0, math.nan], SECOND + "got nan, not a finite number"),
        ([0.0, -math.inf], SECOND + "got -inf, not a finite number"),
        ([0.0, "1"], SECOND + "got '1', not a finite number"),
        ([0.0, 1j], SECOND + "got 1j, not a finite number"),
        ([0.0, [math.nan]], SECOND + "token 0 got nan, not a finite number"),
        ([0.0, torch.tensor([math.nan])], SECOND + "token 0 got nan"),
        ([0.0, [[1.0]]], SECOND + "token 0 got [1.0], not a finite number"),
        ([0.0, []], SECOND + "0 token rewards for 1 tokens"),
        ([0.0, torch.ones(2)], SECOND + "2 token rewards for 1 tokens"),
        (torch.ones(2, 3), SECOND + "3 token rewards for 1 tokens"),
        ([0.0, torch.ones(1, 1)], SECOND + "an array of shape (1, 1)"),
        ([0.0, np.ones((1, 2))], SECOND + "an array of shape (1, 2)"),
        (torch.ones(2, 3, 1), "prompt 'first': an array of shape (3, 1)"),
        ([0.0, None], SECOND + "no token is judged"),
        ([0.0, [None]], SECOND + "no token is judged"),
        ([[0.0, None, 1.0], 0.0], "prompt 'first': a number after None"),
        (torch.ones(2, device="meta"), "a tensor on meta, but the completions are on"),
        ([0.0, torch.ones(1, device="meta")], SECOND + "a tensor on meta"),
        ([0.0, [torch.ones((), device="meta")]], SECOND + "a tensor on meta"),
    ],
)
def test_nonsense_is_named(returned, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        matrix(returned)
    assert isinstance(error.value, RewardError)
    assert message in str(error.value)


def test_a_reward_that_raises_is_named():
    class Judge:
        def __call__(self, prompts, completions, completion_ids, answer):
            raise KeyError("no such thing")

    with pytest.raises(RewardError, match="'Judge' raised KeyError on 2 comp") as error:
        token_reward_matrix(Judge(), ["", ""], ["", ""], IDS, MASK, answer=[1, 2])
    assert isinstance(error.value.__cause__, KeyError)

    def lazy(**_):
        yield 1.0
        raise RuntimeError("in the middle")

    with pytest.raises(RewardError, match=r"'lazy' raised RuntimeError on 2.*middle"):
        token_reward_matrix(lazy, ["", ""], ["", ""], IDS, MASK)
    # A reward inside others is named itself, once.
    inside = CombinedReward({"a": (PotentialShaping(lambda *_: 0.0, lazy), 1.0)})
    with pytest.raises(RewardError, match=r"^reward 'lazy' raised RuntimeError"):
        token_reward_matrix(inside, ["", ""], ["", ""], IDS, MASK)


def test_interrupts_pass_through():
    def slow(**_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        token_reward_matrix(slow, ["", ""], ["", ""], IDS, MASK)


def test_there_must_be_a_token_to_pay():
    with pytest.raises(RewardError, match="completion 0 of prompt 'p': no token"):
        judge(returning([1.0]), ["p"], [""], [[]])


# For TRL


def test_a_token_reward_becomes_one_that_trl_can_call(default):
    """Its convention: keywords only, columns of the data set, a float for each."""
    world, stories = default
    tokenizer = train("bpe-2000", stories, "en")
    good = [*tokenizer.encode(stories[0].text()), tokenizer.eos_id]
    reward = as_sequence_reward(ValidityReward(world, tokenizer))
    paid = reward(
        prompts=["", "Today"], completions=["", ""],
        completion_ids=[good, [*good[1:3], 9, 9, 9]],
        trainer_state=None, log_extra=print, log_metric=print, answer=["a", "b"],
    )  # fmt: skip
    assert paid == [0.0, -1.0]
    assert all(type(value) is float for value in paid)
    assert reward.__name__ == "validity"
    assert as_sequence_reward(OverlongReward(4, 2)).__name__ == "overlong"
    assert on_one(as_sequence_reward(OverlongReward(4, 2)), [7] * 3) == -0.5
    assert on_one(as_sequence_reward(LengthReward(0.25)), [7] * 3) == 0.75
    assert on_one(as_sequence_reward(returning([[1.0, 2.0, None]])), [7] * 3) == 3.0


def test_columns_reach_the_rewards_inside():
    seen = []

    def asks(prompts, completions, completion_ids, answer, **_):
        seen.append((prompts, completions, answer))
        return [1.0]

    reward = CombinedReward({"asks": (PotentialShaping(lambda *_: 0.0, asks), 1.0)})
    assert on_one(as_sequence_reward(reward), [7], "p", "c") == 1.0
    assert seen == [(["p"], ["c"], ["42"])]


# Shaping


def potential(prompt, ids):
    """Any function of the state; its values are exact in binary."""
    return (3 * len(prompt) + sum(ids) * (len(ids) + 1) % 11) / 8 + 1


@pytest.mark.parametrize("plain", [
    returning([[0.5, -1.0, 0.25, 2.0], [1.5, None, None]]),
    returning([0.75, -2.0]),
])  # fmt: skip
@pytest.mark.parametrize("gamma", [1.0, 0.5, 0.0])
def test_shaping_changes_every_return_by_the_potential_of_the_prompt(plain, gamma):
    prompts, ids = ["one", "other"], [[7, 3, 9, 4], [8, 2, 6]]
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    shaped = PotentialShaping(potential, plain, gamma)
    returns = []
    for reward in (plain, shaped):
        rewards, kept = token_reward_matrix(reward, prompts, ["", ""], ids, mask)
        returns.append((returns_to_go(rewards, kept, gamma), kept))
    (before, kept), (after, kept_after) = returns
    assert torch.equal(kept, kept_after)
    # From any state on, and so from the first: exactly, not nearly.
    for i, t in kept.nonzero().tolist():
        phi = potential(prompts[i], ids[i][:t])
        assert float(after[i, t] - before[i, t]) == -phi
        assert phi > 0


def test_shaping_by_hand_asks_for_states_only():
    asked = []

    def phi(prompt, ids):
        asked.append((prompt, list(ids)))
        return 10.0 ** len(ids)

    shaped = PotentialShaping(phi, returning([[1.0, 2.0, 3.0]]), gamma=0.5)
    assert on_one(shaped, [7, 8, 9], "p") == [1 + 5 - 1, 2 + 50 - 10, 3 + 0 - 100]
    assert asked == [("p", []), ("p", [7]), ("p", [7, 8])]
    with pytest.raises(ValueError, match=r"gamma=1\.5"):
        PotentialShaping(phi, shaped, 1.5)


def test_a_potential_that_is_no_number_is_named():
    shaped = PotentialShaping(lambda *_: math.nan, returning([1.0]))
    with pytest.raises(RewardError, match="'shaped', completion 0 of prompt 'p'"):
        judge(shaped, ["p"], [""], [[4, 5]])


# Sums of rewards


def test_a_combination_by_hand():
    reward = CombinedReward(
        {
            "step": (returning([[1.0, 2.0, 4.0], [8.0, 16.0]]), 0.5),
            "stop": (returning([[1.0, -1.0, None], [0.0, 0.0]]), 10.0),
            "whole": (returning([3.0, 5.0]), -1.0),
        }
    )
    ids = [[4, 5, 6], [4, 5]]
    paid = reward(["", ""], ["", ""], ids, trainer_state=None)
    # The second token is the last one: the whole's -3 is paid there, the step's 4 lost.
    assert paid == [[0.5 + 10, 1 - 10 - 3, None], [4.0, 8 + 0 - 5.0]]
    assert reward.metrics == {
        "reward/step": (3 + 24) / 2,
        "reward/stop": 0.0,
        "reward/whole": 4.0,
    }
    rewards, kept = token_reward_matrix(
        reward, ["", ""], ["", ""], ids, torch.tensor([[1, 1, 1], [1, 1, 0]])
    )
    assert rewards.tolist() == [[10.5, -12.0, 0.0], [4.0, 3.0, 0.0]]
    assert kept.tolist() == [[1, 1, 0], [1, 1, 0]]


def test_a_combination_of_one_changes_nothing(default):
    world, stories = default
    tokenizer = train("word", stories, "en")
    validity = ValidityReward(world, tokenizer)
    ids = tokenizer.encode(stories[0].text())
    batch = [ids, [*ids[:5], 9, 9, 9]]
    combined = CombinedReward({"validity": (validity, 1.0)})
    same = combined(["", ""], ["", ""], batch)
    assert same == validity(["", ""], ["", ""], batch)
    assert combined.metrics == {"reward/validity": -0.5}


def test_a_reward_that_changes_what_it_gets_changes_nothing():
    def careless(prompts, completions, completion_ids, **_):
        prompts.clear()
        completions.clear()
        return [[1.0, *[0.0] * len(ids[1:])] for ids in completion_ids if ids.pop(0)]

    ids = [[4, 5, 2], [6, 2]]
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])

    def shorter(completion_ids, **_):
        for row in completion_ids:
            row.pop()
        return [1.0] * len(completion_ids)

    rewards, kept = token_reward_matrix(shorter, ["p", "q"], ["", ""], ids, mask)
    assert rewards.tolist() == [[0, 0, 1], [0, 1, 0]]
    assert torch.equal(kept, mask)
    parts = {"a": (careless, 1.0), "b": (LengthReward(1), 1.0)}
    with pytest.raises(RewardError, match="2 token rewards for 3 tokens"):
        CombinedReward(parts)(["p", "q"], ["", ""], ids)
    assert ids == [[4, 5, 2], [6, 2]]


def test_bytes_that_are_no_text_part_words_as_decode_parts_them():
    tokenizer = CharTokenizer.train(["red fox"])
    stray = tokenizer.to_ids(["<0xFF>"])
    ids = [*tokenizer.encode("re"), *stray, *tokenizer.encode("d")]
    mention = MentionReward("red", tokenizer)
    assert mention.first_mention(ids) is None
    assert mention.first_mention([*stray, *tokenizer.encode("fox red")]) == 7
    half = "é".encode()[:1]
    assert text_so_far(b"re" + half) == "re"
    assert text_so_far(b"re\xffd" + half) == tokenizer.decode(ids)


def test_a_wrong_combination_is_refused():
    with pytest.raises(ValueError, match="parts is empty"):
        CombinedReward({})
    with pytest.raises(ValueError, match="parts\\['a'\\] has weight nan"):
        CombinedReward({"a": (LengthReward(1), math.nan)})
    with pytest.raises(ValueError, match="name 'std'"):
        CombinedReward({"std": (LengthReward(1), 1.0)})
    for part in (LengthReward(1), (1.0, LengthReward(1)), (LengthReward(1),)):
        with pytest.raises(ValueError, match=r"parts\['a'\]=.*give \(reward, weight\)"):
            CombinedReward({"a": part})
    part = CombinedReward({"a": (returning([[1.0, math.nan]]), 1.0)})
    with pytest.raises(RewardError, match="'strange', completion 0 of prompt 'p'"):
        judge(part, ["p"], [""], [[4, 5]])


# A learned reward

TEXT = "Tom goes to the garden."


def bert_tokenizer():
    from transformers import BertTokenizer

    return BertTokenizer.from_pretrained(pretrained.path("bert"))


def tiny(width=32, layers=2, seed=0, **options):
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    tokenizer = bert_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=2, intermediate_size=2 * width,
        max_position_embeddings=96, pad_token_id=0, initializer_range=0.1, **options,
    )  # fmt: skip
    return RewardModel(BertModel(config, add_pooling_layer=False), tokenizer)


@pytest.fixture(scope="module")
def trained():
    """A model that has learned on the small world, and its losses."""
    world = World.small(1)
    generator = seeded(1)
    stories = world.sample_stories(1500, generator)
    model = tiny()
    texts = [spoilt(world, story, generator) for story in stories]
    examples = error_examples(world, texts, model.tokenizer)
    config = FitConfig(steps=250, batch_size=32, bucket=10, learning_rate=3e-3)
    history = fit(model, examples, config, generator=generator, loss=error_loss)
    return world, model, history["loss"]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_examples_say_where_a_text_goes_wrong(small, lang):
    """Against enumeration: a token is wrong if no story begins with its text."""
    world, stories = small
    generator, tokenizer = seeded(2), bert_tokenizer()
    texts, _, whole = beginnings(stories, lang)
    chosen = [stories[i] for i in range(0, len(stories), len(stories) // 150)]
    spoilt_texts = [spoilt(world, story, generator, lang) for story in chosen]
    examples = error_examples(world, spoilt_texts, tokenizer, lang)
    kept = 0
    for text, story, (*ids, right) in zip(spoilt_texts, chosen, examples, strict=True):
        encoded = tokenizer(text, return_offsets_mapping=True)
        assert ids == encoded["input_ids"]
        expected = [0]
        for _, end in encoded["offset_mapping"][1:-1]:
            expected.append(int(text[:end].encode() not in texts))
        expected.append(int(text.encode() not in whole))
        assert expected == [int(t >= right) for t in range(len(ids))]
        kept += text == story.text(lang)
    assert 0.25 < kept / len(chosen) < 0.6, "half as they were, but for those cut off"


def test_it_starts_with_no_opinion_and_learns(trained):
    world, model, losses = trained
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert sum(losses[-20:]) / 20 < 0.25
    generator = seeded(99)
    stories = world.sample_stories(100, generator)
    texts = [spoilt(world, story, generator) for story in stories]
    held_out = error_examples(world, texts, model.tokenizer)
    right = total = errors = 0
    for example in held_out:
        *ids, first_wrong = example
        with torch.no_grad():
            judged = model(torch.tensor([ids]))[0] > 0
        truth = torch.arange(len(ids)) >= first_wrong
        right, total = right + int((judged == truth).sum()), total + len(ids)
        errors += int(truth.sum())
    assert 0.1 < errors / total < 0.5
    assert right / total > 0.88, "saying 'right' to all would not reach this"


def test_the_learned_reward_falls_where_the_text_is_spoilt(trained):
    world, model, _ = trained
    stories = world.sample_stories(60, seeded(5))
    tokenizer = WordTokenizer.train([story.words() for story in stories])
    reward = LearnedReward(model, tokenizer)
    found = 0
    for story in stories[:30]:
        ids = [*tokenizer.encode(story.text()), tokenizer.eos_id]
        p = reward.wrong([""], [ids])[0]
        row = on_one(reward, ids)
        assert len(row) == len(ids)
        assert sum(row) == pytest.approx(p[0] - p[-1], abs=1e-6)
        spoiled = [*ids[:10], ids[9], ids[9], *ids[10:]]  # a word three times
        row = on_one(reward, spoiled)
        found += row.index(min(row)) in (10, 11)
    assert found > 24


@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_does_not_depend_on_later_tokens(default, kind):
    """Whatever follows, and however it changes the splitting of the text."""
    _, stories = default
    tokenizer = train(kind, stories, "en")
    model = tiny(seed=3)
    torch.nn.init.normal_(model.head.linear.weight, generator=seeded())
    reward, rng = LearnedReward(model, tokenizer), random.Random(0)
    ids = tokenizer.encode(TEXT)
    whole = on_one(reward, ids, "Anna")
    assert len(set(whole)) > len(ids) / 2
    for cut in range(1, len(ids)):
        other = rng.choices(range(4, len(tokenizer)), k=3)
        row = on_one(reward, [*ids[:cut], *other], "Anna")
        assert row[:cut] == pytest.approx(whole[:cut], abs=1e-5)


@pytest.mark.parametrize("kind", ["word", "bpe-300"])
def test_the_tokens_of_policy_and_encoder_are_aligned(default, kind):
    """Each token is judged by BERT's reading of the text up to it, and no more."""
    _, stories = default
    tokenizer = train(kind, stories, "en")
    model = tiny(seed=3)
    torch.nn.init.normal_(model.head.linear.weight, generator=seeded())
    reward, encode = LearnedReward(model, tokenizer), model.tokenizer
    ids = [*tokenizer.encode(TEXT), tokenizer.eos_id]
    (p,) = reward.wrong(["Anna"], [ids])
    before = tokenizer.encode("Anna")
    texts = [tokenizer.decode([*before, *ids[:t]]) for t in range(len(ids) + 1)]
    assert texts[0] == "Anna"
    assert texts[-1] == texts[-2]
    rows = [encode(text)["input_ids"] for text in texts]
    for t, (row, text) in enumerate(zip(rows, texts, strict=True)):
        asked = row if t == len(ids) else row[:-1]  # [SEP] only after the end token
        with torch.no_grad():
            logit = model(torch.tensor([asked]))[0, -1]
        assert p[t] == pytest.approx(float(logit.sigmoid()), abs=1e-5), text
    # A word tokenizer ends where BERT's words end: there, offsets say the same.
    if kind == "word":
        whole = encode(texts[-1], return_offsets_mapping=True)
        with torch.no_grad():
            scores = model(torch.tensor([whole["input_ids"]]))[0].sigmoid()
        for t, text in enumerate(texts[:-1]):
            ends = [end for _, end in whole["offset_mapping"][1:-1]]
            assert p[t] == pytest.approx(float(scores[1 + ends.index(len(text))]))


def test_beginnings_share_rows(default):
    """What is split alike is read once: one row for words, not one per token."""
    _, stories = default
    model, sizes = tiny(), []
    model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    tokenizer = train("word", stories, "en")
    ids = tokenizer.encode(TEXT)
    others = [tokenizer.encode("Anna goes"), tokenizer.encode("Tom has a red ball")]
    reward = LearnedReward(model, tokenizer, batch_size=2)
    reward([""] * 4, [""] * 4, [ids, *others, ids])
    assert sizes == [2, 1]


def test_a_reward_model_comes_back_from_its_files(trained, tmp_path):
    _, model, _ = trained
    model.save(tmp_path / "judge")
    assert not list(tmp_path.rglob("*.bin"))
    again = RewardModel.load(tmp_path / "judge")
    ids = torch.tensor([model.tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        assert torch.equal(model(ids), again(ids))
    assert again.tokenizer(TEXT)["input_ids"] == ids[0].tolist()
    (tmp_path / "judge" / "head.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"head\.safetensors is not there"):
        RewardModel.load(tmp_path / "judge")


def test_padding_changes_nothing(trained):
    _, model, _ = trained
    texts = TEXT, "Tom goes to the kitchen and takes it."
    examples = [[*model.tokenizer(text)["input_ids"], 3] for text in texts]
    sizes = [len(example) - 1 for example in examples]
    with torch.no_grad():
        alone = [float(error_loss(model, [example])) for example in examples]
        together = float(error_loss(model, examples))
    weighted = sum(n * loss for n, loss in zip(sizes, alone, strict=True))
    assert together == pytest.approx(weighted / sum(sizes), rel=1e-5)
    assert sizes[0] != sizes[1]


def test_town_bert_can_be_the_judge():
    """The package's own BERT, which was taught to look both ways."""
    from transformers import BertModel

    folder = pretrained.path("bert")
    encoder = BertModel.from_pretrained(folder, add_pooling_layer=False)
    model = RewardModel(encoder, bert_tokenizer())
    world, generator = World.default(), seeded(7)
    stories = world.sample_stories(8, generator)
    texts = [spoilt(world, story, generator) for story in stories]
    examples = error_examples(world, texts, model.tokenizer)
    assert not any(model.tokenizer.unk_token_id in example[:-1] for example in examples)
    assert float(error_loss(model, examples).detach()) == pytest.approx(math.log(2))


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "electra", "gpt2", "eager"])
def test_any_encoder_will_do(kind):
    from transformers import AutoConfig, AutoModel

    if kind == "eager":
        model = tiny(attn_implementation="eager")
    else:
        tokenizer = bert_tokenizer()
        sizes = {"roberta": {}, "electra": {"embedding_size": 16}, "gpt2": {}}
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        if kind == "distilbert":
            shape = {"dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2}
        if kind == "gpt2":
            shape = {"n_embd": 16, "n_layer": 1, "n_head": 2}
        config = AutoConfig.for_model(
            kind, vocab_size=len(tokenizer), **shape, **sizes.get(kind, {})
        )
        model = RewardModel(AutoModel.from_config(config), tokenizer)
    torch.nn.init.normal_(model.head.linear.weight, generator=seeded())
    ids = torch.tensor([model.tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        whole = model(ids)[0]
        for end in range(1, ids.shape[1]):
            torch.testing.assert_close(model(ids[:, :end])[0, -1], whole[end - 1])


def test_an_encoder_that_looks_ahead_is_refused():
    model = tiny()

    class Mean(torch.nn.Module):
        """Every state is the mean of all."""

        config = model.encoder.config

        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(self.config.vocab_size, 32)

        def forward(self, input_ids, attention_mask):
            states = self.embed(input_ids)
            model.last_hidden_state = states.mean(1, keepdim=True).expand_as(states)
            return model

    with pytest.raises(ValueError, match="Mean looks ahead in spite of the mask"):
        RewardModel(Mean(), model.tokenizer)


def test_what_a_reward_model_cannot_use_is_named():
    model = tiny()
    with pytest.raises(ValueError, match="97 tokens; the encoder reads at most 96"):
        model(torch.ones(1, 97, dtype=torch.int64))
    tokenizer = bert_tokenizer()
    tokenizer.sep_token = None
    with pytest.raises(ValueError, match=r"ends it \(sep or eos\)"):
        RewardModel(model.encoder, tokenizer)


def test_spoilt_texts_are_of_every_kind(small):
    world, stories = small
    generator = seeded(4)
    words = [stories[0].words()[:-1]] * 400
    made = [spoilt(world, stories[0], generator) for _ in words]
    whole = stories[0].text()
    sorts = {
        "same": made.count(whole) / 400,
        "cut": sum(whole.startswith(text) and text != whole for text in made) / 400,
        "wrong": sum(not whole.startswith(text) for text in made) / 400,
    }
    assert 0.33 < sorts["same"] < 0.5
    assert 0.1 < sorts["cut"] < 0.28
    assert 0.3 < sorts["wrong"] < 0.5
    lengths = {len(world.split(text)) - len(words[0]) for text in made}
    assert {-1, 0} <= lengths
    pairs = itertools.pairwise(words[0])
    swapped = {(b, a) for a, b in pairs if a != b}
    assert any(
        tuple(two) in swapped
        for text in made
        for two in itertools.pairwise(world.split(text))
    )
