"""Characters to ids and back."""

import pytest
from corpora import stories
from hypothesis import given, settings
from hypothesis import strategies as st

from tokrl.tokenizers import SPECIAL_TOKENS, CharTokenizer
from tokrl.tokenizers.char import BYTE_TOKENS

TRAINED = CharTokenizer.train(stories("zh", 500))


def test_ids_are_by_frequency_then_by_character():
    plain = CharTokenizer.train(["bab", "ca"], byte_fallback=False)
    assert list(plain.vocab) == [*SPECIAL_TOKENS, "a", "b", "c"]
    assert plain.tokens("cab ") == ["c", "a", "b", " "]
    assert plain.encode("cab ") == [6, 4, 5, plain.unk_id]
    assert plain.decode(plain.encode("cab ")) == "cab<unk>"
    assert not plain.byte_fallback
    full = CharTokenizer.train(["bab", "ca"])
    assert list(full.vocab) == [*SPECIAL_TOKENS, *BYTE_TOKENS, "a", "b", "c"]
    assert full.byte_fallback


def test_rare_characters_are_spelt_as_bytes_in_a_small_vocabulary():
    tokenizer = CharTokenizer.train(["abab天"], vocab_size=262)
    assert len(tokenizer) == 262
    assert tokenizer.tokens("a天") == ["a", "<0xE5>", "<0xA4>", "<0xA9>"]
    assert tokenizer.encode("天") == [4 + byte for byte in "天".encode()]
    assert tokenizer.decode(tokenizer.encode("a天b")) == "a天b"
    # What spells a byte token is a text like any other.
    assert tokenizer.decode(tokenizer.encode("<0xE5>")) == "<0xE5>"
    assert len(tokenizer.encode("<0xE5>")) == 6


def test_every_character_of_a_story_is_one_token():
    for text in stories("zh", 500):
        assert len(TRAINED.encode(text)) == len(text)
        assert TRAINED.tokens(text) == list(text)


@settings(max_examples=10_000, deadline=None)
@given(st.text())
def test_any_text_comes_back(text):
    ids = TRAINED.encode(text)
    assert TRAINED.unk_id not in ids
    assert TRAINED.decode(ids) == text


@settings(max_examples=500, deadline=None)
@given(st.lists(st.integers(4, len(TRAINED) - 1)))
def test_any_ids_decode_as_in_the_library(ids):
    assert TRAINED.decode(ids) == THEIRS.decode(ids)


THEIRS = TRAINED.to_hf()


def test_without_byte_tokens_the_library_gives_the_same_ids():
    tokenizer = CharTokenizer.train(["ab c"], byte_fallback=False)
    text = "a 天天 cb<pad>\n"
    assert tokenizer.to_hf().encode(text) == tokenizer.encode(text)
    assert tokenizer.encode(text).count(tokenizer.unk_id) == 7


def test_no_room_for_bytes_is_said_with_the_way_out():
    with pytest.raises(ValueError, match=r"at least 261: .*byte_fallback"):
        CharTokenizer.train(["ab"], vocab_size=100)
    assert len(CharTokenizer.train(["ab"], 100, byte_fallback=False)) == 6
    with pytest.raises(ValueError, match="all of them"):
        CharTokenizer([*SPECIAL_TOKENS, "<0x00>", "a"])
