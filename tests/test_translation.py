"""Translation: the data is true, the rewards are right, the risk is what it says."""

import itertools
import json
import math
from pathlib import Path

import pytest
import sacrebleu
import torch

from tokrl import metrics, models, pretrained
from tokrl.apps import translation as tr
from tokrl.models import LanguageModel
from tokrl.pretrained import make_translator
from tokrl.pretrained.folder import replacing, require_replaceable
from tokrl.rewards import PotentialShaping, judge
from tokrl.tokenizers import SPECIAL_TOKENS, Tokenizer
from tokrl.training import FitConfig
from tokrl.world import World, WorldConfig


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def world():
    return World.default()


@pytest.fixture(scope="module")
def tokenizer(world):
    return tr.make_tokenizer(world)


@pytest.fixture(scope="module")
def shipped():
    folder = Path(pretrained.path("translator"))
    model = models.load(folder / "model.safetensors").double()
    return model, Tokenizer.load(folder / "tokrl.json")


# --- data -----------------------------------------------------------------------------


def test_sentences_are_those_of_the_world_and_so_are_their_translations(world):
    """Joined again, with `they` left out, they are what `World.translate` gives."""
    generator, days, compared = seeded(), {"Yesterday": "昨天", "Today": "今天"}, 0
    for story in world.sample_stories(150, generator):
        translated = world.translate(story.words("en"), "en", "zh")
        ends = [i for i, word in enumerate(translated) if word in ("。", "<eos>")]
        starts = [0, *(end + 1 for end in ends)]
        theirs = [
            tuple(translated[a : b + 1]) for a, b in zip(starts, ends, strict=False)
        ]
        own = story.words("en")
        ends = [i for i, word in enumerate(own) if word == "."]
        starts = [0, *(end + 1 for end in ends)]
        spoken = [tuple(own[a : b + 1]) for a, b in zip(starts, ends, strict=False)]
        kept = [i for i, s in enumerate(spoken) if not {"They", "they"} & set(s)]
        found = tr.sentences(story)
        assert len(found) == len(kept)
        for sentence, i in zip(found, kept, strict=True):
            en, zh = sentence.words["en"], sentence.words["zh"]
            if i > 0 and en[0] in days:  # the day was put in front
                assert zh[0] == days[en[0]]
                assert story.tense == "past"
                en, zh = en[2:], zh[1:]
                en = ("There", *en[1:]) if en[0] == "there" else en
            assert en == spoken[i]
            assert zh == theirs[i]
            compared += 1
    assert compared > 500


def test_first_sentences_are_translated_by_the_world_alone(world):
    for story in world.sample_stories(50, seeded(1)):
        first = tr.sentences(story)[0]
        for source, target in tr.DIRECTIONS:
            theirs = world.translate(first.words[source], source, target)
            assert tuple(theirs) == first.words[target]


@pytest.mark.parametrize("config", [None, tr.LEARNER])
def test_no_sentence_has_two_translations(config):
    world = World(config)
    found = tr.sample_sentences(world, 2000, seeded(), "train")
    found += tr.sample_sentences(world, 100, seeded(), "test")
    for source, target in tr.DIRECTIONS:
        right = {}
        for sentence in found:
            text = sentence.text(source)
            assert right.setdefault(text, sentence.text(target)) == sentence.text(
                target
            )
    longest = max(len(s.words[lang]) for s in found for lang in ("en", "zh"))
    assert longest + 1 <= tr.MAX_TOKENS


def test_alignment_joins_words_that_mean_the_same(world):
    meaning = {"Anna": "安娜", "garden": "花园", "ball": "球", "red": "红",
               "hat": "帽子", "quietly": "悄悄地", "Then": "随后", "took": "拿起",
               "it": "它", "gives": "送给"}  # fmt: skip
    joined = dict.fromkeys(meaning, 0)
    for sentence in tr.sample_sentences(world, 3000, seeded(), "train"):
        en, zh = sentence.words["en"], sentence.words["zh"]
        for word, other in meaning.items():
            if en.count(word) == zh.count(other) == 1:
                i, j = en.index(word), zh.index(other)
                assert sentence.slots["en"][i] == sentence.slots["zh"][j], sentence
                joined[word] += 1
    assert min(joined.values()) > 10


def by_hand(en, zh):
    words = {
        "en": tuple(c for c in "abcdefgh"[: len(en)]),
        "zh": tuple("甲乙丙丁"[: len(zh)]),
    }
    return tr.Sentence(words, {"en": tuple(en), "zh": tuple(zh)})


def test_crossings_count_inversions():
    assert by_hand([0, 1, 2], [0, 1, 2]).crossings == 0
    assert by_hand([0, 1, 2, 2], [0, 2, 1]).crossings == 1
    assert by_hand([0, 1, 2, 3], [3, 2, 1, 0]).crossings == 6
    assert by_hand([0, 1, 3], [0, 5, 3, 1]).crossings == 1  # 5, 把, has no partner


def test_crossings_of_a_place_before_the_verb():
    world = World(tr.LEARNER)
    found = tr.sample_sentences(world, 600, seeded(), "train", naming=True)
    seen = {0: 0, 1: 0, 2: 0}
    for sentence in found:
        words = sentence.words["en"]
        if words[1] in ("takes", "took", "drops", "dropped"):
            # "Anna takes the red ball in the garden.": before verb and thing.
            expected = 2 if {"in", "at", "out"} & set(words) else 0
        elif words[1] in ("gives", "gave"):
            expected = 1  # 把 and the thing before the verb
        elif "has" in words or "had" in words:
            expected = 0
        else:
            continue
        assert sentence.crossings == expected, sentence
        seen[expected] += 1
    assert min(seen.values()) > 20


def test_the_split_keeps_combinations_apart(world):
    train = tr.sample_sentences(world, 600, seeded(), "train")
    test = tr.sample_sentences(world, 100, seeded(), "test")
    for found, held_out in ((train, False), (test, True)):
        assert len({s.words["en"] for s in found}) == len(found)
        for sentence in found:
            text = sentence.text("en")
            together = [p for p in world.held_out if p[0] in text and p[1] in text]
            assert bool(together) == held_out
    other = tr.sample_sentences(world, 300, seeded(), "train", train, naming=True)
    assert not {s.words["en"] for s in other} & {s.words["en"] for s in train}
    for sentence in other:
        text = sentence.text("en")
        assert any(p in text for p in world.people)
        assert any(t in text for t in world.things)


def test_drawing_is_repeatable_and_says_when_there_is_no_more():
    world = World.default()
    a, b = (tr.sample_sentences(world, 20, seeded(3), "train") for _ in range(2))
    assert a == b
    with pytest.raises(ValueError, match="part='valid'"):
        tr.sample_sentences(world, 1, seeded(), "valid")
    tiny = World(WorldConfig(people=2, places=2, things=1, cast_things=1, verbs=1,
                             tenses=("present",), time=0.0, manner=0.0, join=0.0,
                             pair=0.0, pronoun=0.0))  # fmt: skip
    with pytest.raises(ValueError, match=r"count=5000: 1000 stories .* give less"):
        tr.sample_sentences(tiny, 5000, seeded(), "train")


def test_prompts_columns_and_ids(world, tokenizer):
    found = tr.sample_sentences(world, 200, seeded(), "train")
    prompts, columns = tr.pairs(found)
    assert len(prompts) == 400
    assert columns["target"] == ["zh", "en"] * 200
    assert prompts[0] == found[0].text("en") + " <zh>"
    assert columns["reference"][:2] == [found[0].text("zh"), found[0].text("en")]
    for ids, asked, answer in zip(
        tr.encode(found, tokenizer), prompts, columns["reference"], strict=True
    ):
        assert tokenizer.unk_id not in ids
        sign = tokenizer.vocab[asked[-4:]]
        at = ids.index(sign)
        assert [ids[0], ids[-1]] == [tokenizer.bos_id, tokenizer.eos_id]
        assert tokenizer.decode(ids[1:at]) == asked[:-5]
        assert tokenizer.decode(ids[at + 1 : -1]) == answer
    one, _ = tr.pairs(found[:3], [("zh", "en")])
    assert [p[-4:] for p in one] == ["<en>"] * 3
    with pytest.raises(ValueError, match="language 'fr': give one of en, zh"):
        tr.prompt("Anna", "fr")


# --- rewards --------------------------------------------------------------------------

RIGHT = "安娜在花园拿起红球。"


def paid(reward, tokenizer, texts, right=RIGHT, target="zh", end=True):
    ids = [tokenizer.encode(text) + [tokenizer.eos_id] * end for text in texts]
    columns = {"reference": [right] * len(ids), "target": [target] * len(ids)}
    return judge(reward, [""] * len(ids), texts, ids, **columns)


def test_exact_and_bleu_rewards(tokenizer):
    texts = [RIGHT, "安娜拿起红球。", ""]
    assert paid(tr.ExactReward(), tokenizer, texts) == [1.0, 0.0, 0.0]
    found = paid(tr.BleuReward(), tokenizer, texts)
    scorer = sacrebleu.BLEU(tokenize="zh", effective_order=True)
    theirs = [scorer.sentence_score(text, [RIGHT]).score / 100 for text in texts]
    assert found == pytest.approx(theirs, abs=1e-12)
    assert found[0] == pytest.approx(1.0)
    assert 0 < found[1] < 1
    assert found[2] == 0.0


def test_bleu_of_a_short_text_by_hand(tokenizer):
    # "Anna takes it." against "Anna takes the ball.": 4 tokens and 5; 3 of 4 words
    # match, 1 of 3 pairs, then smoothed: 1 / (2 * 2) and 1 / (4 * 1).
    found = paid(tr.BleuReward(), tokenizer, ["Anna takes it."],
                 "Anna takes the ball.", "en")[0]  # fmt: skip
    shares = [3 / 4, 1 / 3, 1 / 4, 1 / 4]
    assert found == pytest.approx(math.exp(1 - 5 / 4) * math.prod(shares) ** 0.25)


def test_shaped_bleu_is_the_bleu_and_equals_potential_shaping(world, tokenizer):
    found = tr.sample_sentences(world, 20, seeded(), "train")
    prompts, columns = tr.pairs(found)
    wrong = columns["reference"][2:] + columns["reference"][:2]  # of the same language
    ids = [[*tokenizer.encode(text), tokenizer.eos_id] for text in wrong]
    shaping = tr.BleuShaping(tokenizer)
    rows = judge(shaping, prompts, wrong, ids, **columns)
    whole = judge(tr.BleuReward(), prompts, wrong, ids, **columns)
    assert [sum(row) for row in rows] == pytest.approx(whole, abs=1e-12)
    known = dict(
        zip(
            prompts,
            zip(columns["reference"], columns["target"], strict=True),
            strict=True,
        )
    )
    other = PotentialShaping(
        lambda prompt, y: shaping.potential(y, *known[prompt]), tr.BleuReward()
    )
    expected = judge(other, prompts, wrong, ids, **columns)
    for row, theirs in zip(rows, expected, strict=True):
        assert row == pytest.approx(theirs, abs=1e-12)
    assert min(map(min, rows)) < 0 < max(map(max, rows))


def test_edits_are_charged_where_they_are_made(tokenizer):
    def row(text, end=True):
        return paid(tr.EditShaping(tokenizer), tokenizer, [text], end=end)[0]

    assert row(RIGHT) == [0] * 8
    # A wrong place: one replacement. A word too much: one deletion.
    assert row("安娜在公园拿起红球。") == [0, 0, -1, 0, 0, 0, 0, 0]
    assert row("安娜安娜在花园拿起红球。") == [0, -1, 0, 0, 0, 0, 0, 0, 0]
    # What is missing at the end is charged to the end token, if there is one.
    assert row("安娜在花园拿起") == [0, 0, 0, 0, -3]
    assert row("安娜在花园拿起", end=False) == [0, 0, 0, 0]
    assert row("") == [-7]
    assert sum(row("安娜拿起红球在花园。")) == -4  # two out, two in


def levenshtein(a, b):
    """Edit distance straight from its definition, by recursion."""
    if not a or not b:
        return len(a) + len(b)
    return min(
        levenshtein(a[1:], b[1:]) + (a[0] != b[0]),
        levenshtein(a[1:], b) + 1,
        levenshtein(a, b[1:]) + 1,
    )


def test_edit_shaping_against_the_definition(tokenizer):
    reward, eos = tr.EditShaping(tokenizer), tokenizer.eos_id
    right = "Anna Tom Anna"
    a, b, c = tokenizer.encode("Anna Tom Lucy")
    wanted = [a, b, a]
    for length in range(5):
        for ids in itertools.product((a, b, c), repeat=length):
            row = reward([""], [""], [[*ids, eos]], reference=[right])[0]
            assert sum(row) == -levenshtein(list(ids), wanted)
            for t in range(length):
                near = min(
                    levenshtein(list(ids[: t + 1]), wanted[:j]) for j in range(4)
                )
                assert sum(row[: t + 1]) == -near
            assert set(row[:-1]) <= {0.0, -1.0}


class Fixed(LanguageModel):
    """Writes the same text after every prompt: each token is sure given its number."""

    max_length = None

    def __init__(self, ids, tokenizer):
        super().__init__()
        self.vocab_size, self.width = len(tokenizer), 1
        self.asks = [tokenizer.vocab["<zh>"], tokenizer.vocab["<en>"]]
        self.ids, self.calls = ids, 0

    def new_cache(self, batch, size):
        return Count()

    def forward(self, ids, mask=None, cache=None):
        if cache.written is None:
            cache.written, self.calls = 0, self.calls + len(ids)
        else:
            cache.written += 1
        logits = torch.full((*ids.shape, self.vocab_size), -50.0)
        logits[..., self.ids[cache.written]] = 50.0
        return logits, cache

    def hidden(self, *args):
        raise NotImplementedError

    def head(self, hidden):
        raise NotImplementedError


class Count:
    written = None

    def keep(self, rows):
        pass


def test_greedy_baseline_is_what_the_policy_would_show(tokenizer):
    shown = "安娜在花园拿起红球。"
    model = Fixed([*tokenizer.encode(shown), tokenizer.eos_id], tokenizer)
    prompts = ["Anna <zh>", "Anna <zh>", "Tom <zh>"]
    columns = {"reference": [shown, shown, "汤姆。"], "target": ["zh"] * 3}
    texts = [shown, "安娜。", "汤姆。"]
    ids = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    reward = tr.GreedyBaseline(tr.ExactReward(), model, tokenizer)
    assert judge(reward, prompts, texts, ids, **columns) == [0.0, -1.0, 1.0]
    assert model.calls == 2  # each different prompt is translated once
    bleu = tr.GreedyBaseline(tr.BleuReward(), model, tokenizer)
    found = judge(bleu, prompts, texts, ids, **columns)
    each = [metrics.sentence_bleu(t, r, "zh") / 100
            for t, r in zip(texts, columns["reference"], strict=True)]  # fmt: skip
    base = metrics.sentence_bleu(shown, "汤姆。", "zh") / 100
    assert found == pytest.approx([0.0, each[1] - 1.0, 1.0 - base])


# --- minimum risk ---------------------------------------------------------------------


def test_minimum_risk_by_hand():
    logprobs = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    costs = torch.tensor([[0.0, 1.0, 0.5]], dtype=torch.float64)
    assert tr.minimum_risk(logprobs, costs) == pytest.approx(0.375)
    # a = 2: weights 4 : 1 : 1
    assert tr.minimum_risk(logprobs, costs, sharpness=2.0) == pytest.approx(0.25)
    assert tr.minimum_risk(logprobs, costs, sharpness=0.0) == pytest.approx(0.5)
    distinct = torch.tensor([[True, True, False]])
    assert tr.minimum_risk(logprobs, costs, distinct) == pytest.approx(1 / 3)
    two = tr.minimum_risk(logprobs.expand(2, 3), torch.cat([costs, 1 - costs]))
    assert two == pytest.approx((0.375 + 0.625) / 2)


def test_the_gradient_of_the_risk_is_a_policy_gradient_with_a_baseline():
    """d risk / d logp_y = a Q(y) (cost(y) - risk) for each prompt."""
    generator = seeded()
    logprobs = torch.randn(3, 5, generator=generator, dtype=torch.float64) - 3
    costs = torch.rand(3, 5, generator=generator, dtype=torch.float64)
    distinct = torch.ones(3, 5, dtype=torch.bool)
    distinct[1, 3] = distinct[2, 0] = False
    logprobs.requires_grad_()
    for a in (1.0, 0.3):
        risk = tr.minimum_risk(logprobs, costs, distinct, a)
        (found,) = torch.autograd.grad(risk, logprobs)
        p = (logprobs.detach().exp() ** a) * distinct
        q = p / p.sum(-1, keepdim=True)
        mean = (q * costs).sum(-1, keepdim=True)
        assert float(risk.detach()) == pytest.approx(float(mean.mean()))
        assert torch.allclose(found, a * q * (costs - mean) / 3, atol=1e-12)
        assert (found[~distinct] == 0).all()
    assert torch.autograd.gradcheck(
        lambda x: tr.minimum_risk(x, costs, distinct, 0.5), logprobs
    )


def test_minimum_risk_names_what_does_not_fit():
    logprobs = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"costs has shape \(6,\), seq_logprobs"):
        tr.minimum_risk(logprobs, torch.zeros(6))
    with pytest.raises(ValueError, match="distinct is False for all candidates"):
        tr.minimum_risk(logprobs, logprobs, torch.tensor([[True] * 3, [False] * 3]))


def test_repeated_candidates_are_marked():
    rows = [[1, 2], [1, 2], [1], [3], [1, 2], [3]]
    marks = [[True, False, True], [True, True, False]]
    assert tr.first_of_kind(rows, 3).tolist() == marks


def test_minimum_risk_training_teaches_what_is_paid(tokenizer):
    """From a random model: the reward rises by its own samples, over three seeds."""

    def begins_with_anna(prompts, completions, completion_ids, **columns):
        return [float(text.startswith("Anna")) for text in completions]

    for seed in range(3):
        model = models.build("transformer", len(tokenizer), seeded(seed), width=16,
                             layers=1, heads=2, max_length=16)  # fmt: skip
        start = {name: value.clone() for name, value in model.state_dict().items()}
        history = tr.train_minimum_risk(
            model, ["安娜 <en>"], begins_with_anna, tokenizer, seeded(seed),
            {"target": ["en"]}, steps=120, prompts_per_step=4, group_size=16,
            learning_rate=1e-2, max_new_tokens=3,
        )  # fmt: skip
        rewards = history["reward/mean"]
        assert sum(rewards[:10]) / 10 < 0.2
        assert sum(rewards[-10:]) / 10 > 0.9
        risk = history["policy/risk"]
        assert min(risk) >= -1
        assert sum(risk[-10:]) / 10 < -0.9
        same = models.build("transformer", len(tokenizer), seeded(seed), width=16,
                            layers=1, heads=2, max_length=16)  # fmt: skip
        tr.train_minimum_risk(
            same, ["安娜 <en>"], lambda **c: [0.3] * len(c["completion_ids"]),
            tokenizer, seeded(), {}, steps=2, prompts_per_step=2, group_size=4,
            max_new_tokens=3,
        )  # fmt: skip
        for name, value in same.state_dict().items():  # no signal, no update
            assert torch.equal(value, start[name])


# --- translating ----------------------------------------------------------------------


def test_the_shipped_translator_is_as_good_as_its_card_says(world, shipped):
    model, words = shipped
    assert words.vocab == tr.make_tokenizer(world).vocab
    for part, low in (("train", 0.98), ("test", 0.96)):
        found = tr.sample_sentences(world, 60, seeded(77), part)
        q = tr.examine(model, words, found)
        assert q.exact >= low
        assert q.bleu > 98
        assert len(q.texts) == 120
    folder = Path(pretrained.path("translator"))
    measured = json.loads((folder / "measured.json").read_text("utf8"))
    assert json.dumps(measured, indent=1) in (folder / "README.md").read_text("utf8")
    assert (folder / "model.safetensors").stat().st_size < 2e6
    assert World(WorldConfig(**json.loads((folder / "world.json").read_text()))).config


def test_quality_is_that_of_sacrebleu(world, shipped):
    """With each translation put in the place of another, so that it is middling."""
    model, words = shipped
    found = tr.sample_sentences(world, 30, seeded(5), "train")
    q = tr.examine(model, words, found)
    assert q.exact == pytest.approx(
        sum(a == b for a, b in zip(
            q.texts, [s.text("zh") for s in found] + [s.text("en") for s in found],
            strict=True)) / 60
    )  # fmt: skip
    moved = [
        tr.Sentence({**a.words, "zh": b.words["zh"]}, {**a.slots, "zh": b.slots["zh"]})
        for a, b in zip(found, found[1:] + found[:1], strict=True)
    ]
    q = tr.examine(model, words, moved, [("en", "zh")])
    references = [s.text("zh") for s in moved]
    bleu = sacrebleu.corpus_bleu(list(q.texts), [references], tokenize="zh").score
    assert 0 < bleu < 90
    assert q.bleu == pytest.approx(bleu)
    chrf = sacrebleu.corpus_chrf(list(q.texts), [references]).score
    assert q.chrf == pytest.approx(chrf)


def test_texts_are_translated_sentence_by_sentence(shipped):
    en = "Anna is in the kitchen. Tom has a red ball. He quietly gives it to Lucy."
    zh = "安娜在厨房。汤姆有一个红球。他悄悄地把它送给露西。"
    assert tr.translate_text(*shipped, en, "zh") == zh
    assert tr.translate_text(*shipped, zh, "en") == en
    assert tr.translate_text(*shipped, "  Anna is in the kitchen ", "zh") == zh[:6]
    assert tr.translate_text(*shipped, "安娜在厨房", "en") == "Anna is in the kitchen."


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("Anna has a kite.", "zh", "not in the vocabulary: 'kite'"),
        ("Ana is in the park.", "zh", "'Ana' .like 'Anna'"),
        ("They go to the park.", "zh", "not in the vocabulary: 'They'"),
        ("", "zh", "text='': give at least one sentence"),
        (" . ", "zh", "give at least one sentence"),
        ("Anna is in the park.", "fr", "language 'fr': give one of en, zh"),
        ("安娜在公园。", "zh", "is for English text, and .* has Chinese in it"),
        ("Anna is in the park.", "en", "is for Chinese text, and .* has English in it"),
        ("Anna takes the 球。", "en", "has English in it, 'A'"),
        ("Anna takes the 球.", "zh", "has Chinese in it, '球'"),
        ("Anna goes to the park。", "zh", "has Chinese in it, '。'"),
        ("安娜 <en>", "en", "has English in it"),
        ("，。", "en", "give at least one word"),
        ("Anna" + " and Tom" * 20 + " go.", "zh", "a sentence of 43 tokens"),
    ],
)
def test_what_cannot_be_translated_is_named(shipped, text, target, message):
    with pytest.raises(ValueError, match=message):
        tr.translate_text(*shipped, text, target)


def test_translations_hold_no_special_token(shipped, world):
    model = models.build("transformer", len(shipped[1]), seeded(), width=16, layers=1,
                         heads=1, max_length=64)  # fmt: skip
    text = tr.translate_text(model, shipped[1], "Anna is in the park.", "zh")
    assert not any(token in text for token in (*SPECIAL_TOKENS, "<en>", "<zh>"))


# --- which word looks where -----------------------------------------------------------


def test_source_attention_is_that_of_the_predicting_positions(shipped, world):
    model, words = shipped
    (sentence,) = tr.sample_sentences(world, 1, seeded(), "test")
    for direction in tr.DIRECTIONS:
        source, target = (sentence.words[lang] for lang in direction)
        found = tr.source_attention(model, words, sentence, direction)
        assert found.shape == (3, 4, len(target), len(source))
        (ids,) = tr.encode([sentence], words, [direction])
        tokens = words.to_tokens(ids)
        whole = model.attention_weights(torch.tensor([ids]))
        for t in range(len(target)):
            at = len(source) + 1 + t  # the position whose next token is target[t]
            assert tokens[at + 1] == target[t]
            for layer in range(3):
                rows = whole[layer][0, :, at]
                for s, word in enumerate(source):
                    assert tokens[1 + s] == word
                    assert torch.equal(found[layer, :, t, s], rows[:, 1 + s])


def test_pointing_by_hand():
    sentence = by_hand([0, 1, 2, 2], [0, 2, 9, 1])  # 9 has no partner
    weights = torch.tensor([[3.0, 1, 0, 0], [0, 0, 1, 2], [1, 0, 0, 0], [1, 0, 0, 0]])
    assert tr.pointing(weights, sentence, ("en", "zh")) == [True, True, False]
    assert tr.chance_of_pointing(sentence, ("en", "zh")) == [0.25, 0.5, 0.25]
    back = torch.eye(4)
    assert tr.pointing(back, sentence, ("zh", "en")) == [True, False, False, False]
    assert tr.chance_of_pointing(sentence, ("zh", "en")) == [0.25] * 4


# --- making ---------------------------------------------------------------------------


def test_making_a_translator_writes_all_of_it(tmp_path):
    folder = tmp_path / "made" / "town"
    config = FitConfig(steps=2, batch_size=4, eval_every=0)
    torch.set_default_dtype(torch.float32)
    make_translator.make(folder, seeded(), config, pairs=20, held_out=5)
    names = {"README.md", "measured.json", "model.safetensors", "tokrl.json",
             "world.json"}  # fmt: skip
    assert {file.name for file in folder.iterdir()} == names
    measured = json.loads((folder / "measured.json").read_text())
    assert set(measured) == {"train", "test"}
    assert set(measured["test"]) == {"en to zh", "zh to en"}
    assert "20 different sentences" in (folder / "README.md").read_text()
    assert "On 5 sentences" in (folder / "README.md").read_text()
    model = models.load(folder / "model.safetensors")
    assert model.vocab_size == len(Tokenizer.load(folder / "tokrl.json"))


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "model"
    with replacing(folder) as made:
        (made / "a.safetensors").write_text("old")
    with pytest.raises(FileNotFoundError), replacing(folder) as made:
        (made / "missing" / "a").write_text("new")
    assert (folder / "a.safetensors").read_text() == "old"
    with replacing(folder) as made:
        (made / "b").write_text("new")
    assert [file.name for file in folder.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_only_a_model_is_replaced(tmp_path, monkeypatch):
    """What is in the way is named before anything is trained."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "thesis.txt").write_text("years")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("texts")
    for folder in ("texts", "file", "link", ".", "..", str(tmp_path)):
        with pytest.raises(ValueError, match="name"), replacing(Path(folder)):
            pass
    assert (tmp_path / "texts" / "thesis.txt").read_text() == "years"
    (tmp_path / "empty").mkdir()
    require_replaceable(Path("empty"))
    require_replaceable(Path("new/model"))
