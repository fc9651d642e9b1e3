"""The pretrained models: whole, small, offline, as good as their cards say."""

import json
import math
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tokrl import models, pretrained
from tokrl.pretrained import make
from tokrl.tokenizers import Tokenizer
from tokrl.training import evaluate
from tokrl.world import LANGUAGES, World


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Any connection is an error; TOKRL_HUB is not set."""

    def refuse(*args, **options):
        raise AssertionError("a test went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("TOKRL_HUB", raising=False)


def folder(name):
    return Path(pretrained.path(name))


def gpt2(dtype=torch.float64):
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(pretrained.path("gpt2"), dtype=dtype)


def stories(count):
    generator = torch.Generator().manual_seed(12345)
    return World.default().sample_stories(count, generator, part="train")


def test_the_hub_is_one_variable_away(monkeypatch, tmp_path):
    assert folder("gpt2").is_dir()
    assert folder("bert").is_dir()
    with pytest.raises(ValueError, match="gpt2, bert"):
        pretrained.path("gpt3")
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"tokrl\.pretrained\.make bert"):
        pretrained.path("bert")
    monkeypatch.setenv("TOKRL_HUB", "1")
    assert pretrained.path("gpt2") == "gpt2"
    assert pretrained.path("bert") == "bert-base-uncased"


@pytest.mark.parametrize("name", pretrained.NAMES)
def test_each_is_small_and_has_a_card(name):
    files = list(folder(name).iterdir())
    assert sum(file.stat().st_size for file in files) < 6e6
    assert not [f for f in files if f.suffix in (".bin", ".pt", ".pkl")], "pickled"
    card = (folder(name) / "README.md").read_text(encoding="utf-8")
    assert f"python -m tokrl.pretrained.make {name}" in card
    measured = (folder(name) / "measured.json").read_text(encoding="utf-8")
    assert measured.strip() in card
    # Language models are measured against the floor; the others answer or translate.
    known = ("training", "floor") if name in ("gpt2", "bert", "writer") else ()
    for word in ("data", "Limits", *known):
        assert word in card


# --- town-gpt2 ------------------------------------------------------------------------


def test_the_card_of_gpt2_says_within_three_percent():
    measured = json.loads((folder("gpt2") / "measured.json").read_text())
    assert measured["train, both"]["above the floor, %"] < 3
    for lang in LANGUAGES:
        assert measured[f"train, {lang}"]["above the floor, %"] < 4


@pytest.mark.parametrize("lang", LANGUAGES)
def test_gpt2_is_as_near_to_the_floor_as_its_card_says(lang):
    """On stories that neither training nor the card has seen."""
    tokenizer = Tokenizer.load(folder("gpt2") / "tokrl.json")
    model = models.from_gpt2(gpt2(torch.float32))
    measured = json.loads((folder("gpt2") / "measured.json").read_text())
    row = measured[f"train, {lang}"]
    world = World.default()
    drawn = world.sample_stories(4000, torch.Generator().manual_seed(99))
    share = sum(world.part(story) == "train" for story in drawn) / len(drawn)
    exact, paid = 0.0, 0.0
    for story in stories(300):
        ids = make.encode_gpt2(tokenizer, story.text(lang))
        paid += evaluate(model, [ids]) * (len(ids) - 1)
        exact += math.log(2 * share) - story.log_prob
    above = 100 * (paid / exact - 1)
    assert above == pytest.approx(row["above the floor, %"], abs=0.6)


def test_our_transformer_has_the_logits_of_gpt2():
    theirs = gpt2()
    ours = models.from_gpt2(theirs)
    tokenizer = Tokenizer.load(folder("gpt2") / "tokrl.json")
    for lang in LANGUAGES:
        for story in stories(5):
            ids = torch.tensor([make.encode_gpt2(tokenizer, story.text(lang))])
            with torch.no_grad():
                difference = ours(ids)[0] - theirs(ids).logits
            assert difference.abs().max() < 1e-8


@pytest.mark.parametrize("lang", LANGUAGES)
def test_gpt2_tokenizer_has_our_ids(lang):
    from transformers import GPT2Tokenizer

    theirs = GPT2Tokenizer.from_pretrained(pretrained.path("gpt2"))
    ours = Tokenizer.load(folder("gpt2") / "tokrl.json")
    for story in stories(50):
        text = story.text(lang)
        ids = theirs(text)["input_ids"]
        assert ids == ours.encode(text)
        assert theirs.decode(ids) == text
    assert (theirs.pad_token_id, theirs.bos_token_id) == (ours.pad_id, ours.bos_id)
    assert (theirs.eos_token_id, theirs.unk_token_id) == (ours.eos_id, ours.unk_id)
    vocab = json.loads((folder("gpt2") / "vocab.json").read_text(encoding="utf-8"))
    assert vocab == ours.vocab


def test_gpt2_writes_possible_stories():
    measured = json.loads((folder("gpt2") / "measured.json").read_text())
    assert measured["share of its stories that are possible"] > 0.3


# --- town-bert ------------------------------------------------------------------------


def bert_tokenizer():
    from transformers import BertTokenizer

    return BertTokenizer.from_pretrained(pretrained.path("bert"))


def test_bert_tokenizer_spells_any_english():
    tokenizer = bert_tokenizer()
    tokens = tokenizer.tokenize("Hello, how are you? The QUICK brown fox: 1,234!")
    assert "[UNK]" not in tokens
    assert tokens[-1] == "!"
    lines = (folder("bert") / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert {piece: i for i, piece in enumerate(lines)} == tokenizer.get_vocab()
    for lang in LANGUAGES:
        for story in stories(20):
            assert "[UNK]" not in tokenizer.tokenize(story.text(lang))


def test_bert_loads_with_every_weight():
    from transformers import BertModel

    _, report = BertModel.from_pretrained(
        pretrained.path("bert"), output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]


def test_bert_finds_hidden_words():
    """A place that the story names again, by hand: the exact answer is certain."""
    from transformers import BertForMaskedLM

    tokenizer = bert_tokenizer()
    model = BertForMaskedLM.from_pretrained(pretrained.path("bert")).eval()
    text = ("Today, Anna is in the kitchen. Tom is in the park. Anna has a red ball. "
            "There is a blue box in the park. Tom takes the blue [MASK].")  # fmt: skip
    batch = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        probs = model(**batch).logits.softmax(-1)[0]
    at = batch["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    (box,) = tokenizer.convert_tokens_to_ids(["box"])
    assert probs[at].argmax() == box
    measured = json.loads((folder("bert") / "measured.json").read_text())
    row = measured["one hidden word, en"]
    assert row["model, nats"] < row["exact, nats"] + 0.25


# --- the command that makes them ------------------------------------------------------


@pytest.mark.parametrize("name", make.PARTS)
def test_the_command_makes_a_folder_that_loads(name, tmp_path, monkeypatch, capsys):
    """And run once more, it goes on from its checkpoint: there is nothing to do."""
    from transformers import AutoModel

    config = replace(make.CONFIGS[name], steps=4, eval_every=2, checkpoint_every=2)
    monkeypatch.setitem(make.CONFIGS, name, config)
    monkeypatch.setattr(make, "SHAPE", {"width": 16, "layers": 1, "heads": 2})
    monkeypatch.setattr(make, "STORIES", {name: 200})
    monkeypatch.setattr(make, "HELD_OUT", 10)
    run, out = tmp_path / "run", tmp_path / "made"
    made = []
    for _ in range(2):
        make.make(name, run, out)
        made.append({f.name: f.read_bytes() for f in out.iterdir()})
    assert made[0].keys() == made[1].keys() == {f.name for f in folder(name).iterdir()}
    assert made[0]["README.md"] == made[1]["README.md"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made", "run"]
    assert models.num_parameters(AutoModel.from_pretrained(out)) > 1000
