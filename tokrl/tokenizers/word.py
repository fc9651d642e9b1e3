"""Words and punctuation marks as tokens."""

from collections import Counter
from collections.abc import Iterable, Sequence

from tokrl.tokenizers.base import SPECIAL_TOKENS, Tokenizer
from tokrl.tokenizers.text import join_words, split_text


class WordTokenizer(Tokenizer):
    """One token for each word and each punctuation mark.

    Chinese text has no spaces: it is split into the longest words that the
    vocabulary knows.
    """

    kind = "word"

    @classmethod
    def train(
        cls, texts: Iterable[str | Sequence[str]], vocab_size: int | None = None
    ) -> "WordTokenizer":
        """Take the most frequent words of a corpus.

        texts       strings, or lists of words where the splitting is known
        vocab_size  size with the 4 special tokens; None takes every word
        Ties are broken by the order of the words, so that the result does not
        depend on the order of the texts. Raises ValueError for an empty corpus or
        a size that leaves no room for a word.
        """
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(split_text(text) if isinstance(text, str) else text)
        for token in SPECIAL_TOKENS:
            counts.pop(token, None)
        if not counts:
            raise ValueError("the corpus has no words: give at least one text")
        if vocab_size is not None and vocab_size <= len(SPECIAL_TOKENS):
            raise ValueError(
                f"vocab_size={vocab_size}: give more than {len(SPECIAL_TOKENS)}, the "
                "number of special tokens"
            )
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        room = None if vocab_size is None else vocab_size - len(SPECIAL_TOKENS)
        return cls([*SPECIAL_TOKENS, *ranked[:room]])

    def tokens(self, text: str) -> list[str]:
        return split_text(text, self.vocab)

    def _join(self, tokens: list[str]) -> str:
        return join_words(tokens)
