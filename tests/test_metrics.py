"""Metrics against sacrebleu, counts by hand, and what must not matter."""

import math
from collections import Counter

import pytest
import sacrebleu

from tokrl.metrics import bleu, chrf, distinct_n, exact_match, self_bleu, sentence_bleu

TEXTS = ["Tom takes the red ball.", "Anna went to the old garden.", "She is there."]
REFERENCES = ["Tom takes the red book.", "Anna went to the garden.", "She is there."]
ZH = ["汤姆拿了红色的球。", "安娜去了花园。"]
ZH_REFERENCES = ["汤姆拿了红色的书。", "安娜去了公园。"]


def words(text):
    return text.replace(".", " .").split()


def bleu_by_hand(texts, references):
    """Papineni et al. 2002 for split texts: orders 1 to 4, brevity penalty."""
    logs = []
    for n in range(1, 5):
        hits = total = 0
        for text, reference in zip(texts, references, strict=True):
            grams, allowed = (
                Counter(tuple(row[i : i + n]) for i in range(len(row) - n + 1))
                for row in (text, reference)
            )
            hits += sum((grams & allowed).values())
            total += sum(grams.values())
        logs.append(math.log(hits / total))
    size, wanted = (sum(map(len, rows)) for rows in (texts, references))
    brevity = min(1.0, math.exp(1 - wanted / size))
    return 100 * brevity * math.exp(sum(logs) / 4)


def test_bleu_is_the_formula_of_the_paper():
    expected = bleu_by_hand(list(map(words, TEXTS)), list(map(words, REFERENCES)))
    assert bleu(TEXTS, REFERENCES) == pytest.approx(expected)
    assert 0 < expected < 100
    shorter = [text.replace(" the", "") for text in TEXTS[:2]] + TEXTS[2:]
    by_hand = bleu_by_hand(list(map(words, shorter)), list(map(words, REFERENCES)))
    assert bleu(shorter, REFERENCES) == pytest.approx(by_hand), "brevity penalty"


def test_chinese_is_cut_into_characters():
    expected = bleu_by_hand(list(map(list, ZH)), list(map(list, ZH_REFERENCES)))
    assert bleu(ZH, ZH_REFERENCES, lang="zh") == pytest.approx(expected)
    assert bleu(ZH, ZH_REFERENCES, lang="en") < expected / 2


def test_equal_texts_get_the_most_and_order_does_not_matter():
    assert bleu(REFERENCES, REFERENCES) == pytest.approx(100)
    assert chrf(REFERENCES, REFERENCES) == pytest.approx(100)
    assert exact_match(REFERENCES, REFERENCES) == 1
    for score in (bleu, chrf, exact_match):
        assert score(TEXTS[::-1], REFERENCES[::-1]) == pytest.approx(
            score(TEXTS, REFERENCES)
        )
        assert score(TEXTS, REFERENCES[::-1]) < score(TEXTS, REFERENCES)


def test_exact_match_counts_to_the_letter():
    assert exact_match(TEXTS, REFERENCES) == pytest.approx(1 / 3)
    assert exact_match(["She is there"], ["She is there."]) == 0


def test_chrf_is_the_library_s_and_hears_a_letter():
    expected = sacrebleu.corpus_chrf(TEXTS, [REFERENCES]).score
    assert chrf(TEXTS, REFERENCES) == pytest.approx(expected)
    near, far = ["Tom takes the red balls."], ["Tom takes the red hat."]
    wanted = ["Tom takes the red ball."]
    assert chrf(near, wanted) > chrf(far, wanted)
    assert bleu(near, wanted) == pytest.approx(bleu(far, wanted))


def test_sentence_bleu_uses_the_orders_there_are():
    """Three tokens have no 4-grams; BLEU over four orders would be smoothed."""
    assert sentence_bleu("Hello .", "Hello .") == pytest.approx(100)
    assert sentence_bleu("She is there.", "She is there.") == pytest.approx(100)
    text, reference = TEXTS[0], REFERENCES[0]
    by_hand = bleu_by_hand([words(text)], [words(reference)])
    assert sentence_bleu(text, reference) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("texts", "references", "lang", "tokenize"),
    [(TEXTS, REFERENCES, "en", "13a"), (ZH, ZH_REFERENCES, "zh", "zh")],
)
def test_sentence_bleu_is_the_librarys_however_often_asked(
    texts, references, lang, tokenize
):
    scorer = sacrebleu.BLEU(tokenize=tokenize, effective_order=True)
    for text in (*texts, texts[0], ""):
        for reference in references:
            expected = scorer.sentence_score(text, [reference]).score
            assert sentence_bleu(text, reference, lang) == expected
    with pytest.raises(ValueError, match="'de'"):
        sentence_bleu(texts[0], references[0], "de")


def test_distinct_by_hand():
    texts = [["a", "b", "a"], ["a", "b"], ["c"]]
    assert distinct_n(texts, 1) == 3 / 6
    assert distinct_n(texts, 2) == 2 / 3
    assert distinct_n(texts, 3) == 1
    with pytest.raises(ValueError, match="4 words"):
        distinct_n(texts, 4)
    with pytest.raises(ValueError, match="n=0"):
        distinct_n(texts, 0)
    for plain in ("a b a", ["a b a"]):
        with pytest.raises(ValueError, match="lists of words"):
            distinct_n(plain, 2)


def test_no_gram_crosses_from_one_text_to_the_next():
    assert distinct_n([["a", "b"], ["c", "d"]], 2) == 1
    assert distinct_n([["a", "b"], ["a", "b"]], 2) == 1 / 2


def test_self_bleu_of_equal_texts_is_100_and_of_unlike_ones_near_0():
    assert self_bleu(["Tom takes the red ball."] * 3) == pytest.approx(100)
    unlike = ["one two three four", "five six seven eight", "nine ten eleven twelve"]
    assert self_bleu(unlike) < 15
    mixed = self_bleu([*TEXTS, TEXTS[0]])
    assert self_bleu(TEXTS) < mixed < 100


def test_self_bleu_takes_each_other_text_as_a_reference_and_never_itself():
    expected = sum(
        sacrebleu.BLEU(effective_order=True)
        .sentence_score(text, [other for other in TEXTS if other != text])
        .score
        for text in TEXTS
    )
    assert self_bleu(TEXTS) == pytest.approx(expected / 3)
    assert self_bleu(ZH, "zh") > self_bleu(ZH, "en")


@pytest.mark.parametrize("score", [bleu, chrf, exact_match])
def test_lists_that_do_not_fit_are_named(score):
    with pytest.raises(ValueError, match="3 texts and 2 references"):
        score(TEXTS, REFERENCES[:2])
    with pytest.raises(ValueError, match="0 texts"):
        score([], [])
    with pytest.raises(ValueError, match="lists"):
        score(TEXTS[0], REFERENCES[0])


def test_a_language_must_be_known():
    with pytest.raises(ValueError, match=r"lang='de'.*en, zh"):
        bleu(TEXTS, REFERENCES, lang="de")
    with pytest.raises(ValueError, match="at least two"):
        self_bleu(TEXTS[:1])
