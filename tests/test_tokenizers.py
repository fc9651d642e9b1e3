"""Words to ids and back."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokrl.tokenizers import SPECIAL_TOKENS, WordTokenizer, join_words, split_text
from tokrl.world import LANGUAGES, World


def corpus(lang, count=300):
    stories = World.default().sample_stories(count, torch.Generator().manual_seed(0))
    return [s.text(lang) for s in stories], [s.words(lang) for s in stories]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_stories_round_trip(lang):
    texts, words = corpus(lang)
    tokenizer = WordTokenizer.train(words)
    for text, pieces in zip(texts, words, strict=True):
        ids = tokenizer.encode(text)
        assert tokenizer.to_tokens(ids) == pieces[:-1]
        assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == text
    ids = tokenizer.to_ids(words[0])
    assert ids[-1] == tokenizer.eos_id
    assert tokenizer.unk_id not in ids


def test_ids_are_by_frequency_then_alphabet_whatever_the_order_of_texts():
    tokenizer = WordTokenizer.train(["b a b", "c a"])
    assert list(tokenizer.vocab) == [*SPECIAL_TOKENS, "a", "b", "c"]
    assert WordTokenizer.train(["c a", "b a b"]).vocab == tokenizer.vocab


def test_rare_words_are_unknown_in_a_small_vocabulary():
    tokenizer = WordTokenizer.train(["b a b", "c a"], vocab_size=6)
    assert len(tokenizer) == 6
    assert tokenizer.encode("a c") == [tokenizer.vocab["a"], tokenizer.unk_id]
    assert tokenizer.decode(tokenizer.encode("a c")) == "a <unk>"


def test_chinese_words_are_the_longest_known():
    assert split_text("他们去花园。", {"他", "他们", "去", "花园"}) == [
        "他们", "去", "花园", "。",
    ]  # fmt: skip
    assert split_text("他们", ()) == ["他", "们"]


def test_empty_text_and_empty_corpus():
    tokenizer = WordTokenizer.train(["a"])
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""
    for texts in ([], [""], ["<pad> <eos>"]):
        with pytest.raises(ValueError, match="no words"):
            WordTokenizer.train(texts)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="vocab_size=4"):
        WordTokenizer.train(["a"], vocab_size=4)
    with pytest.raises(ValueError, match="id 99"):
        WordTokenizer.train(["a"]).decode([99])
    with pytest.raises(ValueError, match="must start with"):
        WordTokenizer(["a", "b"])
    with pytest.raises(ValueError, match="twice"):
        WordTokenizer([*SPECIAL_TOKENS, "a", "a"])


def test_save_and_load(tmp_path):
    path = tmp_path / "words.json"
    tokenizer = WordTokenizer.train(corpus("zh")[1])
    tokenizer.save(path)
    assert WordTokenizer.load(path).vocab == tokenizer.vocab
    assert [p.name for p in tmp_path.iterdir()] == ["words.json"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"kind": "bpe"}', '{"kind":"word"}']
)
def test_a_damaged_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"broken\.json"):
        WordTokenizer.load(path)


def test_saving_over_a_file_leaves_it_whole_if_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "words.json"
    WordTokenizer.train(["a"]).save(path)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        WordTokenizer.train(["b"]).save(path)
    assert "a" in json.loads(path.read_text())["vocab"]
    assert len(list(tmp_path.iterdir())) == 1


@given(st.text())
def test_any_text_splits_into_its_own_characters(text):
    words = split_text(text)
    letters = [c for c in text if not c.isspace()]
    assert sorted("".join(words)) == sorted(letters)


@given(st.lists(st.sampled_from(["Anna", "red", ",", ".", "厨房", "。", "它"])))
def test_joining_then_splitting_gives_the_words(words):
    assert split_text(join_words(words), {"厨房"}) == words
