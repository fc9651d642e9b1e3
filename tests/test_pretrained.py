"""The pretrained models: made by one command, found offline."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tokrl import models, pretrained
from tokrl.pretrained import make
from tokrl.world import LANGUAGES, World


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Any connection is an error; TOKRL_HUB is not set."""

    def refuse(*args, **options):
        raise AssertionError("a test went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("TOKRL_HUB", raising=False)


def stories(count):
    generator = torch.Generator().manual_seed(12345)
    return World.default().sample_stories(count, generator, part="train")


def test_the_hub_is_one_variable_away(monkeypatch, tmp_path):
    assert Path(pretrained.path("bert")).is_dir()
    with pytest.raises(ValueError, match="gpt2, bert"):
        pretrained.path("gpt3")
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"tokrl\.pretrained\.make bert"):
        pretrained.path("bert")
    monkeypatch.setenv("TOKRL_HUB", "1")
    assert pretrained.path("gpt2") == "gpt2"
    assert pretrained.path("bert") == "bert-base-uncased"


def bert_tokenizer():
    from transformers import BertTokenizer

    return BertTokenizer.from_pretrained(pretrained.path("bert"))


def test_bert_tokenizer_spells_any_english():
    tokenizer = bert_tokenizer()
    tokens = tokenizer.tokenize("Hello, how are you? The QUICK brown fox: 1,234!")
    assert "[UNK]" not in tokens
    assert tokens[-1] == "!"
    vocab = Path(pretrained.path("bert")) / "vocab.txt"
    lines = vocab.read_text(encoding="utf-8").splitlines()
    assert {piece: i for i, piece in enumerate(lines)} == tokenizer.get_vocab()
    for lang in LANGUAGES:
        for story in stories(20):
            assert "[UNK]" not in tokenizer.tokenize(story.text(lang))


# --- the command that makes them ------------------------------------------------------


@pytest.mark.parametrize("name", pretrained.NAMES)
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
    assert made[0].keys() == made[1].keys()
    assert made[0]["README.md"] == made[1]["README.md"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made", "run"]
    assert models.num_parameters(AutoModel.from_pretrained(out)) > 1000
