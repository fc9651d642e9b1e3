"""Text to ids and back."""

from tokrl.tokenizers.base import BOS, EOS, PAD, SPECIAL_TOKENS, UNK, Tokenizer
from tokrl.tokenizers.text import join_words, split_text
from tokrl.tokenizers.word import WordTokenizer

__all__ = [
    "BOS",
    "EOS",
    "PAD",
    "SPECIAL_TOKENS",
    "UNK",
    "Tokenizer",
    "WordTokenizer",
    "join_words",
    "split_text",
]
