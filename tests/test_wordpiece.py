"""WordPiece: ids are those of BertTokenizer, training is by likelihood."""

import json
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from math import log

import pytest
from corpora import many_words, stories
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from test_tokenizers import MIXED, younger_than_the_library
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BertTokenizer

from tokrl.tokenizers import SPECIAL_TOKENS, WordPieceTokenizer
from tokrl.world import LANGUAGES

# The course of Hugging Face trains on these counts, too; we break ties otherwise.
HUGS = ["hug"] * 10 + ["pug"] * 5 + ["pun"] * 12 + ["bun"] * 4 + ["hugs"] * 5


def bert(tokenizer):
    return BertTokenizer(
        vocab=tokenizer.vocab, do_lower_case=False, pad_token="<pad>",
        cls_token="<bos>", sep_token="<eos>", unk_token="<unk>", mask_token="<unk>",
    )  # fmt: skip


def ids_of(theirs, text):
    return theirs.encode(text, add_special_tokens=False, split_special_tokens=True)


# --- encoding -------------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [200, 2_000])
@pytest.mark.parametrize("lang", LANGUAGES)
def test_ids_are_those_of_bert_on_the_whole_corpus(lang, vocab_size):
    texts = stories(lang)
    ours = WordPieceTokenizer.train(texts[:1_000], vocab_size)
    theirs = bert(ours)
    found = theirs(list(texts), add_special_tokens=False)["input_ids"]
    assert [ours.encode(text) for text in texts] == found


@pytest.fixture(scope="module")
def pair():
    """A tokenizer with few and odd pieces, and BERT's with the same vocabulary."""
    pieces = "a ##a b ab ##ab aba ##b é ##é 1 1½ ##1 ' ’ . _ # ## < 中 厨 。 x ##xx"
    ours = WordPieceTokenizer([*SPECIAL_TOKENS, *pieces.split()])
    return ours, bert(ours)


def test_any_text_gets_the_ids_of_bert(pair):
    ours, theirs = pair
    letters = st.characters(
        exclude_categories=("Cs", "Cn"),
        exclude_characters=younger_than_the_library("wordpiece"),
    )

    @settings(max_examples=2_000, deadline=None)
    @given(st.text(letters | st.sampled_from(MIXED)) | st.text("abx 中"))
    @example("a" * 100)
    @example("a" * 101)
    @example("厨房a中b厨, aba##ab <unk>ab[UNK]")
    def read(text):
        assert ours.encode(text) == ids_of(theirs, text)

    read()


def test_the_longest_piece_is_taken_and_a_rest_makes_the_word_unknown(pair):
    ours, _ = pair
    assert ours.tokens("abab abaab") == ["aba", "##b", "aba", "##ab"]
    assert ours.tokens("xxx xx") == ["x", "##xx", "xx"]  # no ##x: unknown
    assert ours.encode("xx") == [ours.unk_id]
    assert ours.tokens("a中a'b") == ["a", "中", "a", "'", "b"]
    assert ours.encode("a" * 101 + " a") == [ours.unk_id, ours.vocab["a"]]
    assert ours.tokens("a" * 101) == ["a" * 101]
    assert ours.decode(ours.encode("abab, a 中厨 xx.")) == "abab <unk> a中厨<unk>."


def test_pieces_join_as_words_do(pair):
    ours, _ = pair
    theirs = ours.to_hf()
    for tokens in (["##a", "b", "##ab"], ["a", ".", "'", "中", "##a", "b"], ["##a"]):
        ids = ours.to_ids(tokens)
        assert ours.decode(ids) == theirs.decode(ids)


# --- training -------------------------------------------------------------------------


def test_merges_by_hand():
    # ##g ##s stands 5 times, ##g 20 and ##s 5: 5 / (20 * 5). All other scores are
    # 1/36, as every word has its ##u: the most frequent of these is p ##u, 17. Then
    # u is left 19 times, always after h or b: 15 / (15 * 19).
    steps = list(WordPieceTokenizer.merge_steps(HUGS, 21))
    assert [pair for pair, _ in steps] == [("##g", "##s"), ("p", "##u"), ("h", "##u")]
    assert [score for _, score in steps] == [1 / 20, 1 / 36, 1 / 19]
    tokenizer = WordPieceTokenizer.train(HUGS, 21)
    letters = [*"bghnpsu", *(f"##{c}" for c in "bghnpsu")]
    assert list(tokenizer.vocab) == [*SPECIAL_TOKENS, *letters, "##gs", "pu", "hu"]
    assert tokenizer.tokens("hugs pug") == ["hu", "##gs", "pu", "##g"]


def plain_steps(texts, vocab_size):
    """Training as it is told, with exact fractions; words have no punctuation."""
    words = Counter(
        tuple(c if i == 0 else f"##{c}" for i, c in enumerate(word))
        for text in texts
        for word in text.split()
    )
    inside = {c[-1] for word in words if len(word) > 1 for c in word}
    vocab = sorted({token[-1] for word in words for token in word})
    vocab += [f"##{c}" for c in sorted(inside)]
    while len(vocab) < vocab_size - 4:
        uses, pairs = Counter(), Counter()
        for word, count in words.items():
            for token in word:
                uses[token] += count
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            return
        score = {(a, b): Fraction(n, uses[a] * uses[b]) for (a, b), n in pairs.items()}
        best = min(
            pairs, key=lambda p: (-score[p], -pairs[p], *map(vocab.index, p))
        )  # fmt: skip
        yield best, float(score[best])
        vocab.append(best[0] + best[1].removeprefix("##"))
        merged = Counter()
        for word, count in words.items():
            tokens = []
            for token in word:
                if tokens and (tokens[-1], token) == best:
                    tokens[-1] = vocab[-1]
                else:
                    tokens.append(token)
            merged[tuple(tokens)] += count
        words = merged


@settings(max_examples=500, deadline=None)
@given(st.lists(st.text("abc ", max_size=12), min_size=1), st.integers(10, 60))
@example(["aaaa aaaaa"], 60)
@example(["abababa babab"], 60)
def test_the_scores_are_those_of_plain_training(texts, vocab_size):
    assume(any(text.strip() for text in texts))
    steps = list(WordPieceTokenizer.merge_steps(texts, vocab_size))
    assert steps == list(plain_steps(texts, vocab_size))


def test_the_scores_are_those_of_plain_training_on_many_words():
    texts = many_words()[:20]
    steps = list(WordPieceTokenizer.merge_steps(texts, 200))
    assert steps == list(plain_steps(texts, 200))
    words = [piece for (a, b), _ in steps for piece in [a + b.removeprefix("##")]]
    tokenizer = WordPieceTokenizer.train(texts, 200)
    assert list(tokenizer.vocab)[-len(words) :] == words
    assert len(tokenizer) == 200


def test_the_score_is_the_gain_in_likelihood():
    """Each replacement multiplies the likelihood by N score / e."""

    def log_likelihood(uses):
        total = sum(uses.values())
        return sum(n * log(n / total) for n in uses.values() if n)

    uses = Counter({"a": 4_000, "b": 5_000, "c": 60_000})
    n = 3  # few replacements, as the rule is one of small changes
    score = n / (uses["a"] * uses["b"])
    after = uses - Counter({"a": n, "b": n}) + Counter({"ab": n})
    gain = log_likelihood(after) - log_likelihood(uses)
    assert gain / n == pytest.approx(log(sum(uses.values()) * score) - 1, abs=2e-3)


def test_the_library_trains_by_count_instead():
    texts = many_words()[:400]
    theirs = Tokenizer(models.WordPiece(unk_token="<unk>"))
    theirs.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    theirs.train_from_iterator(texts, trainer)
    vocab = json.loads(theirs.to_str())["model"]["vocab"]
    first = next(t for t, i in sorted(vocab.items(), key=lambda item: item[1])
                 if i > 3 and len(t.removeprefix("##")) == 2)  # fmt: skip
    pairs = Counter()
    for word in " ".join(texts).split():
        tokens = [word[0], *(f"##{c}" for c in word[1:])]
        pairs.update(a + b[2:] for a, b in pairwise(tokens))
    assert first == pairs.most_common(1)[0][0]
    (a, b), _ = next(WordPieceTokenizer.merge_steps(texts, 200))
    assert a + b[2:] != first


def test_chinese_characters_are_words_and_have_no_continuing_form():
    tokenizer = WordPieceTokenizer.train(["他去a1厨房。"], 100)
    assert list(tokenizer.vocab)[4:] == [*sorted("1a。他厨去房"), "##1", "##a", "a1"]


def test_any_word_of_known_letters_has_pieces():
    tokenizer = WordPieceTokenizer.train(stories("en", 500), 300)
    for word in ("kitchens", "regarding", "zebra", "lAnna", "x"):
        unknown = set(word) - {t[-1] for t in tokenizer.vocab}
        assert (tokenizer.unk_id in tokenizer.encode(word)) == bool(unknown)
