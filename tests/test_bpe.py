"""BPE: merges and ids are those of the `tokenizers` library."""

import json
from collections import Counter
from functools import cache
from itertools import pairwise

import pytest
import regex
from corpora import many_words, stories
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tokrl.tokenizers import SPECIAL_TOKENS, BPETokenizer
from tokrl.tokenizers.bpe import ALPHABET, BYTE_LETTERS
from tokrl.world import LANGUAGES


def library(texts, vocab_size):
    """The same training by the library, and its (vocabulary, merges)."""
    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator(texts, trainer)
    theirs.encode_special_tokens = True  # "<pad>" in a text is a text
    model = json.loads(theirs.to_str())["model"]
    return theirs, model["vocab"], [tuple(pair) for pair in model["merges"]]


def assert_trained_alike(texts, vocab_size):
    ours = BPETokenizer.train(texts, vocab_size)
    theirs, vocab, merges = library(texts, vocab_size)
    assert ours.merges == merges
    assert ours.vocab == vocab
    return ours, theirs


@cache
def trained():
    """Ours and the library's, of 500 tokens in two languages."""
    texts = [*stories("en", 500)[:200], *stories("zh", 500)[:200]]
    return assert_trained_alike(texts, 500)


# --- against the library --------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [500, 2_000])
@pytest.mark.parametrize("lang", LANGUAGES)
def test_merges_and_ids_are_the_librarys_on_the_whole_corpus(lang, vocab_size):
    texts = stories(lang)
    assert sum(len(text.encode()) for text in texts) > 850_000
    ours, theirs = assert_trained_alike(texts, vocab_size)
    ids = [ours.encode(text) for text in texts]
    assert ids == [found.ids for found in theirs.encode_batch(texts)]
    for text, row in zip(texts, ids, strict=True):
        assert ours.decode(row) == text


def test_merges_and_ids_are_the_librarys_on_many_words():
    texts = many_words()
    ours, theirs = assert_trained_alike(texts, 5_000)
    found = [found.ids for found in theirs.encode_batch(texts)]
    assert [ours.encode(text) for text in texts] == found


# Few letters make ties, runs and overlaps; assigned characters, odd bytes. Where the
# Unicode tables of the library end is in test_tokenizers.
FEW = st.text("ab c", max_size=40)
ANY = st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=40)


@settings(max_examples=1_000, deadline=None)
@given(st.lists(FEW | ANY, min_size=1, max_size=8), st.integers(260, 400))
@example(["aaaa", "aaaaa aaa"], 400)
@example(["abababa", "babab"], 400)
@example(["é’s 汉字汉 \t\n  x", "\u00a0\u3000"], 400)
def test_any_corpus_gives_the_merges_of_the_library(texts, vocab_size):
    assume(any(texts))
    ours, theirs = assert_trained_alike(texts, vocab_size)
    for text in (*texts, "".join(texts)):
        assert ours.encode(text) == theirs.encode(text).ids
        assert ours.tokens(text) == theirs.encode(text).tokens


@settings(max_examples=1_000, deadline=None)
@given(ANY | st.text("aehndotwlk .'s\n"))
def test_any_text_gets_the_ids_of_the_library(text):
    ours, theirs = trained()
    assert ours.encode(text) == theirs.encode(text).ids


@settings(max_examples=1_000, deadline=None)
@given(st.lists(st.integers(0, 499), max_size=12))
def test_any_ids_decode_to_the_text_of_the_library(ids):
    ours, theirs = trained()
    # `<unk>`, which no encoding makes, is left out: the library drops it.
    ids = [i for i in ids if i != ours.unk_id]
    assert ours.decode(ids) == theirs.decode(ids)


def test_the_comparison_notices_one_merge_out_of_order():
    ours, theirs = trained()
    texts = stories("en", 500)
    right = [found.ids for found in theirs.encode_batch(texts)]
    assert [ours.encode(text) for text in texts] == right
    wrong = BPETokenizer(list(ours.vocab), [*ours.merges[1:], ours.merges[0]])
    assert [wrong.encode(text) for text in texts] != right


# --- by hand --------------------------------------------------------------------------


def test_merges_of_three_words_by_hand():
    # hug 3, pug 2, bun 1: ug occurs 5 times, then h+ug 3, p+ug 2; of b+u and u+n,
    # once each, b+u has the smaller ids.
    texts = ["hug", "pug", "hug", "bun", "hug", "pug"]
    steps = [
        (("u", "g"), 5), (("h", "ug"), 3), (("p", "ug"), 2),
        (("b", "u"), 1), (("bu", "n"), 1),
    ]  # fmt: skip
    assert list(BPETokenizer.merge_steps(texts, 300)) == steps
    assert list(BPETokenizer.merge_steps(texts, 262)) == steps[:2]
    tokenizer = BPETokenizer.train(texts, 262)
    assert tokenizer.merges == [("u", "g"), ("h", "ug")]
    assert list(tokenizer.vocab)[260:] == ["ug", "hug"]
    assert tokenizer.tokens("hug bug hugs") == [
        *("hug", "Ġ", "b", "ug", "Ġ", "hug", "s")
    ]
    assert tokenizer.vocab["u"] not in tokenizer.encode("hug")
    # A vocabulary that the corpus cannot fill stays smaller.
    assert len(BPETokenizer.train(texts, 300)) == 265


def test_runs_are_merged_from_the_left():
    assert list(BPETokenizer.merge_steps(["aaaaa"], 300)) == [
        (("a", "a"), 4), (("aa", "a"), 1), (("aa", "aaa"), 1),
    ]  # fmt: skip
    assert BPETokenizer.train(["aaaaa"], 261).tokens("aaaaa") == ["aa", "aa", "a"]


def test_a_token_is_shown_as_bytes_and_can_be_read():
    tokenizer, _ = trained()
    assert BYTE_LETTERS[ord(" ")] == "Ġ"
    assert sorted(BYTE_LETTERS) == ALPHABET == sorted(set(ALPHABET))
    assert not any(letter.isspace() for letter in ALPHABET)
    tokens = tokenizer.tokens("Anna 在图X")
    assert "".join(map(tokenizer.readable, tokenizer.tokens(" the park."))) == (
        " the park."
    )
    assert tokenizer.readable("ĠAnna") == " Anna"
    assert tokenizer.readable("åľ¨") == "在"
    assert tokenizer.readable("åľ") == "\\xe5\\x9c"
    assert tokenizer.readable("<unk>") == "<unk>"
    assert tokenizer._join(tokens) == "Anna 在图X"


# --- plain twins ----------------------------------------------------------------------


def plain_merges(texts, vocab_size):
    """Training as it is told: count all pairs, merge the best one, begin again."""
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    words = Counter(
        tuple(BYTE_LETTERS[byte] for byte in word.encode())
        for text in texts
        for word in regex.findall(pattern, text)
    )
    vocab = [*SPECIAL_TOKENS, *ALPHABET]
    while len(vocab) < vocab_size:
        pairs = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            return
        best = min(pairs, key=lambda pair: (-pairs[pair], *map(vocab.index, pair)))
        yield best, pairs[best]
        vocab.append("".join(best))
        merged = Counter()
        for word, count in words.items():
            merged[plain_merge(word, best)] += count
        words = merged


def plain_merge(word, pair):
    tokens = []
    for token in word:
        if tokens and (tokens[-1], token) == pair:
            tokens[-1] += token
        else:
            tokens.append(token)
    return tuple(tokens)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_pair_index_gives_the_steps_of_plain_training(lang):
    texts = stories(lang, 500)[:40]
    steps = list(BPETokenizer.merge_steps(texts, 420))
    assert steps == list(plain_merges(texts, 420))
    assert BPETokenizer.train(texts, 420).merges == [pair for pair, _ in steps]


@settings(max_examples=300, deadline=None)
@given(st.lists(FEW, min_size=1), st.integers(260, 300))
def test_the_pair_index_gives_the_steps_of_plain_training_on_any_text(texts, size):
    assume(any(texts))
    plain = list(plain_merges(texts, size))
    assert list(BPETokenizer.merge_steps(texts, size)) == plain


@settings(max_examples=500, deadline=None)
@given(st.text("Anakitchegrdw", max_size=30))
def test_the_heap_merges_as_plain_merging_does(word):
    tokenizer, _ = trained()
    ranks = {pair: rank for rank, pair in enumerate(tokenizer.merges)}
    tokens = tuple(word)
    while True:
        pairs = [p for p in pairwise(tokens) if p in ranks]
        if not pairs:
            break
        tokens = plain_merge(tokens, min(pairs, key=ranks.get))
    assert tokenizer.tokens(word) == list(tokens)


# --- any text -------------------------------------------------------------------------


@settings(max_examples=10_000, deadline=None)
@given(st.text())
def test_any_text_comes_back(text):
    tokenizer, _ = trained()
    ids = tokenizer.encode(text)
    assert tokenizer.unk_id not in ids
    assert tokenizer.decode(ids) == text


def test_a_long_word_takes_no_longer_than_its_length_asks(monkeypatch):
    tokenizer, theirs = trained()
    word = "kitchengarden" * 2_000
    asked = []
    ranks = tokenizer._ranks

    class Counted(dict):
        def get(self, pair):
            asked.append(pair)
            return ranks.get(pair)

    monkeypatch.setattr(tokenizer, "_ranks", Counted())
    assert tokenizer.encode(word) == theirs.encode(word).ids
    assert len(asked) < 5 * len(word)  # and not its square
