"""WordPiece: pieces of words by likelihood, found by greedy longest match.

Sources: Schuster and Nakajima 2012, "Japanese and Korean voice search", section 3,
for merging by likelihood, of which the score below is the form usually taught (the
gain of one replacement, not of all); Devlin et al. 2019, "BERT", for what a word is
and for `##`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import regex

from tokrl.runs import collector_paused
from tokrl.tokenizers.base import SPECIAL_TOKENS, UNK, Tokenizer, check_size
from tokrl.tokenizers.pairs import PairIndex, count_words
from tokrl.tokenizers.text import hf_decoder, join_words

# The Chinese characters of BERT, with the gap at U+2B820 that the library has.
_HAN = (
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df"
    r"\U0002a700-\U0002b81f\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f"
)
_MARKS = r"\p{P}$+<=>\^`|~"
# BERT drops control characters (private ones too) but for tab and line breaks.
_DROPPED = regex.compile(r"[^\P{Cc}\t\n\r]|[\p{Cf}\p{Co}\ufffd]")
_WORDS = regex.compile(rf"[{_HAN}{_MARKS}]|[^{_HAN}{_MARKS}\s]+")
_LONGEST = 100  # characters: BERT takes no longer word


class WordPieceTokenizer(Tokenizer):
    """Words split into the longest pieces that the vocabulary has, from the left.

    Words are found as `BertTokenizer(do_lower_case=False)` finds them: by spaces,
    with each punctuation mark and each Chinese character a word by itself. A piece
    that continues a word is written with `##` before it. A word that cannot be
    spelt with pieces, or has over 100 characters, becomes one `<unk>`. Spaces are
    not kept: decoding puts them where `join_words` does.
    """

    kind = "wordpiece"

    def __init__(self, vocab: Sequence[str]):
        super().__init__(vocab)
        self._longest = max(map(len, self._plain), default=0)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "WordPieceTokenizer":
        """Learn the pieces of a corpus.

        vocab_size  size with the 4 special tokens and the letters; the vocabulary
                    stays smaller where the corpus has no more pairs to merge
        Every character of the corpus is in the vocabulary, and each that occurs in
        longer words also as `##` piece. Raises ValueError for an empty corpus or a
        size with no room for these.
        """
        words = count_words(texts, _words)
        letters = _letters(words)
        why = f"4 special tokens and {len(letters)} letters of the corpus"
        check_size(vocab_size, len(SPECIAL_TOKENS) + len(letters), why)
        with collector_paused():
            steps = _merge_steps(words, letters, vocab_size)
            merged = [_glue(*pair) for pair, _ in steps]
        return cls([*SPECIAL_TOKENS, *letters, *merged])

    @staticmethod
    def merge_steps(
        texts: Iterable[str], vocab_size: int
    ) -> Iterator[tuple[tuple[str, str], float]]:
        """The steps of training: (pair, score), merge by merge.

        The pair with the highest score is merged,

            score(ab) = count(ab) / (count(a) count(b)).

        Why: let each token have its share of the corpus as its probability, n/N.
        Where ab replaces a and b, a factor n(ab)/N replaces (n(a)/N) (n(b)/N), and
        the other factors change a little as n(a), n(b) and N fall. In sum each
        replacement multiplies the likelihood of the corpus by N score(ab) / e, for
        rare ab. BPE asks how often a pair occurs; WordPiece asks how much more often
        than its parts would meet by chance. Rare letters that only occur together
        are merged first. Of equal scores the more frequent pair is taken, then the
        one with the smaller ids.

        The `tokenizers` library has no such training: its `WordPieceTrainer` merges
        by count, as BPE does, and only writes the result with `##`.
        """
        words = count_words(texts, _words)
        return _merge_steps(words, _letters(words), vocab_size)

    def _split(self, text: str) -> list[str]:
        return _words(text)

    def _pieces(self, word: str) -> list[str]:
        if len(word) > _LONGEST:
            return [word]
        pieces, start, mark = [], 0, ""
        while start < len(word):
            end = min(len(word), start + self._longest)
            while end > start and mark + word[start:end] not in self._plain:
                end -= 1
            if end == start:
                return [word]
            pieces.append(mark + word[start:end])
            start, mark = end, "##"
        return pieces

    def _word_ids(self, word: str) -> tuple[int, ...]:
        return (self.unk_id,) if len(word) > _LONGEST else super()._word_ids(word)

    def _join(self, tokens: list[str]) -> str:
        words: list[str] = []
        for token in tokens:
            if words and token.startswith("##"):
                words[-1] += token.removeprefix("##")
            else:
                words.append(token)
        return join_words(words)

    def _backend(self):
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

        backend = Tokenizer(
            models.WordPiece(
                self.vocab, unk_token=UNK, max_input_chars_per_word=_LONGEST
            )
        )
        backend.normalizer = normalizers.BertNormalizer(lowercase=False)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = hf_decoder(continuing="##")
        return backend


def _words(text: str) -> list[str]:
    return _WORDS.findall(_DROPPED.sub("", text))


def _letters(words: Iterable[str]) -> list[str]:
    """The pieces that training starts from: `c` for a character, `##c` inside words."""
    inside = {c for word in words if len(word) > 1 for c in word}
    return sorted({c for word in words for c in word}) + [
        f"##{c}" for c in sorted(inside)
    ]


def _glue(left: str, right: str) -> str:
    return left + right.removeprefix("##")


def _merge_steps(words: Counter[str], letters: list[str], vocab_size: int):
    """Steps of training from counted words and the pieces to start from."""
    pieces = list(letters)
    numbers = {piece: n for n, piece in enumerate(pieces)}
    spelt = {
        "".join(chr(numbers["##" * (i > 0) + c]) for i, c in enumerate(word)): count
        for word, count in words.items()
    }
    scores = _Scores(spelt, len(pieces))
    while len(pieces) < vocab_size - len(SPECIAL_TOKENS):
        pair, score = scores.best()
        if not score:
            return
        left, right = (pieces[ord(number)] for number in pair)
        yield (left, right), score
        scores.merge(pair, chr(len(pieces)))
        pieces.append(_glue(left, right))


class _Scores:
    """The scores of all pairs, kept up to date merge by merge.

    A merge changes the counts of a few pairs, but the scores of all pairs that share
    a token with them. So the scores are computed anew for each merge, over arrays
    with one row for each pair that ever occurred.
    """

    def __init__(self, words: dict[str, int], tokens: int):
        self._index = PairIndex(words)
        self._uses = np.zeros(tokens, dtype=np.int64)  # count(a) by number of a
        for word, count in words.items():
            for token in word:
                self._uses[ord(token)] += count
        self._rows: dict[str, int] = {}
        self._pairs: list[str] = []
        self._counts = self._left = self._right = np.zeros(0, dtype=np.int64)
        self._update(self._index.counts)

    def best(self) -> tuple[str, float]:
        """The pair to merge and its score; ("", 0.0) if there is none."""
        uses = self._uses[self._left] * self._uses[self._right]
        scores = self._counts / np.maximum(uses, 1)
        score = scores.max(initial=0.0)
        if not score:
            return "", 0.0
        rows = np.flatnonzero(scores == score)
        rows = rows[self._counts[rows] == self._counts[rows].max()]
        return min(self._pairs[row] for row in rows), float(score)

    def merge(self, pair: str, new: str) -> None:
        merged, fewer, more = self._index.merge(pair, new)
        self._uses = np.append(self._uses, merged)
        for token in pair:
            self._uses[ord(token)] -= merged
        self._update({pair, *fewer, *more})

    def _update(self, pairs: Iterable[str]) -> None:
        """Bring the rows of these pairs up to date, after new rows for new pairs."""
        pairs = list(pairs)
        if fresh := sorted(pair for pair in pairs if pair not in self._rows):
            for pair in fresh:
                self._rows[pair] = len(self._pairs)
                self._pairs.append(pair)
            left, right = zip(*(map(ord, pair) for pair in fresh), strict=True)
            self._left = np.append(self._left, left)
            self._right = np.append(self._right, right)
            self._counts = np.append(self._counts, np.zeros_like(left))
        for pair in pairs:
            self._counts[self._rows[pair]] = self._index.counts[pair]
