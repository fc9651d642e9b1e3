"""What holds for every tokenizer, and words to ids and back."""

import gc
import json
import pickle
import unicodedata
from functools import cache

import pytest
import torch
from corpora import stories, told
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tokrl.tokenizers import (
    SPECIAL_TOKENS,
    BPETokenizer,
    CharTokenizer,
    Tokenizer,
    WordPieceTokenizer,
    WordTokenizer,
    join_words,
    split_text,
)
from tokrl.tokenizers.base import _WordCache
from tokrl.tokenizers.bpe import BYTE_LETTERS
from tokrl.world import LANGUAGES, World

CLASSES = {
    "char": CharTokenizer,
    "word": WordTokenizer,
    "bpe": BPETokenizer,
    "wordpiece": WordPieceTokenizer,
}
every_kind = pytest.mark.parametrize("kind", CLASSES)
in_every_language = pytest.mark.parametrize("lang", LANGUAGES)


@cache
def trained(kind, lang):
    """A tokenizer that has read 500 stories (as lists of words, for words)."""
    texts = [s.words(lang) for s in told(500)] if kind == "word" else None
    return CLASSES[kind].train(texts or stories(lang, 500), vocab_size=600)


# --- every tokenizer ------------------------------------------------------------------


@in_every_language
@every_kind
def test_stories_come_back_from_their_ids(kind, lang):
    tokenizer = trained(kind, lang)
    for text in stories(lang)[-500:]:  # unlike those that were read
        ids = tokenizer.encode(text)
        assert 0 < len(ids) <= len(text)
        assert min(ids) > tokenizer.unk_id
        assert tokenizer.to_ids(tokenizer.tokens(text)) == ids
        assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == text
        assert tokenizer.decode(torch.tensor(ids)) == text


@every_kind
def test_special_tokens_come_first_and_an_empty_text_has_no_ids(kind):
    tokenizer = trained(kind, "en")
    assert [tokenizer.vocab[token] for token in SPECIAL_TOKENS] == [0, 1, 2, 3]
    assert list(tokenizer.vocab.values()) == list(range(len(tokenizer)))
    assert tokenizer.encode("") == tokenizer.tokens("") == []
    assert tokenizer.decode([]) == tokenizer.decode([0, 2, 1]) == ""


@every_kind
def test_special_tokens_spelt_in_a_text_are_text(kind):
    tokenizer = trained(kind, "en")
    text = "Anna <eos> <pad><bos>, <unk> <eos>."
    ids = tokenizer.encode(text)
    assert not {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id} & set(ids)
    assert tokenizer.to_hf().encode(text) == ids
    if kind in ("char", "bpe"):
        assert tokenizer.decode(ids) == text


@in_every_language
@every_kind
def test_the_twin_for_transformers_gives_the_same_ids_and_text(kind, lang, tmp_path):
    ours = trained(kind, lang)
    theirs = ours.to_hf()
    texts = stories(lang)[-500:]
    ids = [ours.encode(text) for text in texts]
    assert theirs(list(texts))["input_ids"] == ids
    assert theirs.batch_decode(ids) == [ours.decode(row) for row in ids]
    for name in ("pad", "bos", "eos", "unk"):
        found = getattr(theirs, f"{name}_token_id")
        assert found == getattr(ours, f"{name}_id")
    assert len(theirs) == len(ours)
    assert theirs.decode([1, *ids[0], 2, 0], skip_special_tokens=True) == texts[0]

    theirs.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    odd = "Anna’s <eos> don't  42 图书馆 naïve\n"
    for text in (*texts[:50], odd):
        assert again.encode(text) == ours.encode(text)


MIXED = "ab eé'’s1½_.,<>#-\n\t 中厨房。，\u00a0\u0301\u200d\u001c\x00\x85🙂"


def assigned(**without):
    """Random text of characters that Python's Unicode tables know."""
    known = st.characters(exclude_categories=("Cs", "Cn"), **without)
    return st.text(known | st.sampled_from(MIXED))


@in_every_language
@every_kind
def test_the_twin_for_transformers_reads_any_text_alike(kind, lang):
    ours = trained(kind, lang)
    theirs = ours.to_hf()

    @settings(max_examples=500, deadline=None)
    @given(assigned(exclude_characters=younger_than_the_library(kind)))
    @example("Anna's don't we’ve 图书馆 <eos> <a<eos>>")
    @example("(Anna) “安娜 Anna” 图书馆 (Tom 。")
    def read(text):
        ids = ours.encode(text)
        assert theirs.encode(text) == ids
        assert theirs.decode(ids) == ours.decode(ids)

    read()


@cache
def younger_than_the_library(kind):
    """The characters that part words here and not in the library, or the reverse."""
    ours = trained(kind, "zh")
    backend = ours._backend()

    def same(texts):
        text = "\n".join(texts)
        mine = list(ours._split(text))
        if kind == "bpe":
            mine = ["".join(BYTE_LETTERS[b] for b in w.encode()) for w in mine]
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        if backend.pre_tokenizer is None:
            return True
        theirs = [w for w, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return mine == theirs

    found = []
    characters = [c for i in range(0x110000) if unicodedata.category(c := chr(i)) not in
                  ("Cs", "Cn")]  # fmt: skip
    for i in range(0, len(characters), 64):
        lines = [f"a{c}1" for c in characters[i : i + 64]]
        if not same(lines):
            found += [line[1] for line in lines if not same([line])]
    return "".join(found)


@every_kind
def test_the_library_classes_every_character_alike_but_for_young_ones(kind):
    found = younger_than_the_library(kind)
    if kind == "wordpiece":
        # The library's BERT parts know the punctuation and the format characters of
        # Unicode 7 or so: of 288,000 characters some 200 are different there.
        assert len(found) < 250
        for c in set(found) - {"\u166d", "\U000111c9"}:
            assert unicodedata.category(c)[0] in "PC"
            assert unicodedata.ucd_3_2_0.category(c) == "Cn"
    else:
        assert found == ""


@every_kind
def test_a_saved_tokenizer_is_the_same_when_loaded(kind, tmp_path):
    path = tmp_path / "tokens.json"
    tokenizer = trained(kind, "zh")
    tokenizer.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["tokens.json"]
    for again in (
        CLASSES[kind].load(path),
        Tokenizer.load(path),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert type(again) is CLASSES[kind]
        assert again.vocab == tokenizer.vocab
        for text in (*stories("zh")[-20:], "don't 42 naïve 龘"):
            assert again.encode(text) == tokenizer.encode(text)
            assert again.decode(again.encode(text)) == tokenizer.decode(
                tokenizer.encode(text)
            )
    for other in set(CLASSES) - {kind}:
        with pytest.raises(ValueError, match=f"tokens.json holds '{kind}'"):
            CLASSES[other].load(path)


def damages(kind, data):
    """Faults of a file, one at a time, from its right content."""
    tokens = data["vocab"]
    yield {}
    yield {**data, "vocab": None}
    yield {**data, "vocab": "abc"}
    yield {**data, "vocab": tokens[1:]}
    yield {**data, "vocab": [*tokens, tokens[-1]]}
    yield {**data, "vocab": [*tokens, 5]}
    yield {**data, "vocab": [*tokens, ""]}
    yield {**data, "more": 1}
    yield {**data, "kind": "sentences"}
    yield {**data, "kind": [kind]}
    yield [data]
    if kind == "char":
        yield {**data, "vocab": [*tokens, "ab"]}
        yield {**data, "vocab": [t for t in tokens if t != "<0x7F>"]}
    if kind == "bpe":
        yield {**data, "vocab": [t for t in tokens if t != "Ġ"]}
        yield {**data, "vocab": [*tokens, " "]}
        for fault in ("a", "a b c", "a ☃", "☃ a", "x y", 5, None, ["a"]):
            yield {**data, "merges": [*data["merges"], fault]}
        yield {**data, "merges": 5}


@every_kind
def test_a_damaged_file_is_refused_by_name(kind, tmp_path):
    path = tmp_path / "broken.json"
    trained(kind, "en").save(path)
    whole = path.read_text("utf8")
    for text in ("", "{", whole[: len(whole) // 2], whole.replace("{", "[")):
        path.write_text(text, "utf8")
        with pytest.raises(ValueError, match=r"broken\.json"):
            CLASSES[kind].load(path)
    for fault in damages(kind, json.loads(whole)):
        path.write_text(json.dumps(fault), "utf8")
        for cls in (CLASSES[kind], Tokenizer):
            with pytest.raises(ValueError, match=r"broken\.json"):
                cls.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"broken\.json"):
        CLASSES[kind].load(path)
    with pytest.raises(FileNotFoundError):
        CLASSES[kind].load(tmp_path / "none.json")


@every_kind
def test_what_is_no_text_is_refused(kind):
    tokenizer = trained(kind, "en")
    for wrong in (None, 5, b"Anna", ["Anna"]):
        for method in (tokenizer.encode, tokenizer.tokens):
            with pytest.raises(TypeError, match="give a string"):
                method(wrong)
    with pytest.raises(ValueError, match=r"U\+D83D, at index 2"):
        tokenizer.encode("a \ud83d")
    cls = CLASSES[kind]
    with pytest.raises(TypeError, match="the corpus is a string"):
        cls.train("Anna", vocab_size=300)
    with pytest.raises(TypeError, match="give a string"):
        cls.train([["Anna", 5]] if kind == "word" else ["Anna", 5], vocab_size=300)
    with pytest.raises(ValueError, match=r"U\+D83D"):
        cls.train(["a\ud83d"], vocab_size=300)
    for nothing in ([], [""]):
        with pytest.raises(ValueError, match="no words"):
            cls.train(nothing, vocab_size=300)
    for bad in (-1, len(tokenizer), 10**9):
        with pytest.raises(ValueError, match=f"id {bad}"):
            tokenizer.decode([bad])


@every_kind
def test_a_vocabulary_that_cannot_hold_the_alphabet_is_refused(kind):
    texts = ["ab ab cab"]  # WordPiece starts from a, b, c, ##a, ##b, ##c
    least = {"char": 261, "word": 5, "bpe": 260, "wordpiece": 10}[kind]
    for size in (least - 1, 0, -1, float(least), str(least)):
        with pytest.raises(ValueError, match=f"vocab_size=.*at least {least}"):
            CLASSES[kind].train(texts, vocab_size=size)
    assert len(CLASSES[kind].train(texts, vocab_size=least)) == least


@every_kind
def test_the_order_of_texts_does_not_matter(kind):
    texts = stories("en", 500)[:100]
    one = CLASSES[kind].train(texts, vocab_size=400)
    other = CLASSES[kind].train(iter(texts[::-1]), vocab_size=400)
    assert list(one.vocab) == list(other.vocab)


@every_kind
def test_the_cache_is_bounded_and_changes_nothing(kind, monkeypatch):
    monkeypatch.setattr(_WordCache, "MOST_WORDS", 3)
    small = pickle.loads(pickle.dumps(trained(kind, "en")))
    small._cache.clear()
    for text in stories("en", 500)[:20]:
        assert small.encode(text) == trained(kind, "en").encode(text)
        assert len(small._cache) <= 3
    small._cache.clear()
    small.encode("a" * 101)
    assert set(small._cache) <= {"a"}  # a long word is not kept
    ids = small.encode("Anna")
    ids.append(5)  # the caller's list, not the cache's
    assert small.encode("Anna") == ids[:-1]


def test_training_leaves_the_collector_as_it_was():
    for was_on in (True, False):
        (gc.enable if was_on else gc.disable)()
        try:
            BPETokenizer.train(["aab"], 270)
            with pytest.raises(ValueError, match="no words"):
                BPETokenizer.train([], 270)
            assert gc.isenabled() is was_on
        finally:
            gc.enable()


# --- words ----------------------------------------------------------------------------


def corpus(lang, count=300):
    found = World.default().sample_stories(count, torch.Generator().manual_seed(0))
    return [s.text(lang) for s in found], [s.words(lang) for s in found]


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
