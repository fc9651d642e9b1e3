"""Words and punctuation marks as tokens."""

from collections import Counter
from collections.abc import Iterable, Sequence

from tokrl.tokenizers.base import (
    SPECIAL_TOKENS,
    UNK,
    Tokenizer,
    check_size,
    check_text,
)
from tokrl.tokenizers.text import hf_decoder, hf_splitter, join_words, split_text


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
        if vocab_size is not None:
            check_size(vocab_size, len(SPECIAL_TOKENS) + 1, "4 special tokens, a word")
        if isinstance(texts, str):
            raise TypeError("the corpus is a string: give a list of texts")
        counts: Counter[str] = Counter()
        for text in texts:
            words = split_text(text) if isinstance(text, str) else text
            counts.update(map(check_text, words))
        for token in SPECIAL_TOKENS:
            counts.pop(token, None)
        if not counts:
            raise ValueError("the corpus has no words: give at least one text")
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls([*SPECIAL_TOKENS, *ranked][:vocab_size])

    def _split(self, text: str) -> list[str]:
        return split_text(text, self.vocab)

    def _pieces(self, word: str) -> list[str]:
        return [word]

    def _join(self, tokens: list[str]) -> str:
        return join_words(tokens)

    def _backend(self):
        from tokenizers import Regex, Tokenizer, models, normalizers

        backend = Tokenizer(models.WordLevel(self.vocab, unk_token=UNK))
        # The model would find special tokens spelt in a text: none of them is meant.
        special = Regex("|".join(SPECIAL_TOKENS))
        backend.normalizer = normalizers.Replace(special, UNK)
        backend.pre_tokenizer = hf_splitter(self.vocab)
        backend.decoder = hf_decoder()
        return backend
