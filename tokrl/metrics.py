"""What texts are measured by, where a count of errors is not enough."""

import functools
from collections.abc import Sequence

import sacrebleu

from tokrl.world import LANGUAGES


def _check(texts: Sequence[str], references: Sequence[str]) -> None:
    if isinstance(texts, str) or isinstance(references, str):
        raise ValueError("give lists of texts, not one text")
    if len(texts) != len(references) or not len(texts):
        raise ValueError(
            f"{len(texts)} texts and {len(references)} references: give as many of "
            "both, at least one"
        )


def _scorer(lang: str, **options) -> sacrebleu.BLEU:
    if lang not in LANGUAGES:
        raise ValueError(f"lang={lang!r}: give one of {', '.join(LANGUAGES)}")
    return sacrebleu.BLEU(tokenize="zh" if lang == "zh" else "13a", **options)


def bleu(texts: Sequence[str], references: Sequence[str], lang: str = "en") -> float:
    """Corpus BLEU, 0 to 100: Papineni et al. 2002, as sacrebleu counts it.

    texts, references  one reference for each text
    lang               the language of both: Chinese is cut into characters
    Raises ValueError if their numbers differ or the language is unknown.
    """
    _check(texts, references)
    return _scorer(lang).corpus_score(list(texts), [list(references)]).score


def sentence_bleu(text: str, reference: str, lang: str = "en") -> float:
    """BLEU of one text, 0 to 100, over the orders that a text of its length has.

    Where an order has no match, sacrebleu's exponential smoothing stands in. It is no
    mean of which corpus BLEU would be the sum.
    Raises ValueError if the language is unknown. Source: Post 2018.
    """
    return _sentence_bleu(text, reference, lang)


# A policy writes the same again and again, and for the same references.
@functools.lru_cache(2**16)
def _sentence_bleu(text: str, reference: str, lang: str) -> float:
    return _sentence_scorer(reference, lang).corpus_score([text], None).score


@functools.lru_cache(2**12)
def _sentence_scorer(reference: str, lang: str) -> sacrebleu.BLEU:
    return _scorer(lang, effective_order=True, references=[[reference]])


def chrf(texts: Sequence[str], references: Sequence[str]) -> float:
    """Corpus chrF, 0 to 100: F-score of character n-grams, Popovic 2015."""
    _check(texts, references)
    return sacrebleu.CHRF().corpus_score(list(texts), [list(references)]).score


def exact_match(texts: Sequence[str], references: Sequence[str]) -> float:
    """Share of texts that equal their reference to the letter."""
    _check(texts, references)
    return sum(map(str.__eq__, texts, references)) / len(texts)


def distinct_n(texts: Sequence[Sequence[str]], n: int) -> float:
    """Share of different n-grams among all n-grams of some texts: Li et al. 2016.

    texts  each a list of words or tokens
    It falls as more texts are counted: compare equal numbers of texts only.
    Raises ValueError if n is no whole number of at least 1, a text is no list, or no
    text has n words.
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n={n!r}: give a whole number of at least 1")
    if isinstance(texts, str) or any(isinstance(text, str) for text in texts):
        raise ValueError("texts holds plain text: give lists of words, `text.split()`")
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    if not grams:
        raise ValueError(f"none of the {len(texts)} texts has {n} words")
    return len(set(grams)) / len(grams)


def self_bleu(texts: Sequence[str], lang: str = "en") -> float:
    """Mean BLEU of each text with all others as references: Zhu et al. 2018.

    0 to 100; the higher, the more alike the texts are. Costs the square of their
    number. Raises ValueError for fewer than two texts.
    """
    if isinstance(texts, str) or len(texts) < 2:
        raise ValueError(f"{len(texts)} texts: give a list of at least two")
    scorer = _scorer(lang, effective_order=True)
    scores = [
        scorer.sentence_score(text, [*texts[:i], *texts[i + 1 :]]).score
        for i, text in enumerate(texts)
    ]
    return sum(scores) / len(scores)
