"""Text to ids and back."""

from tokrl.tokenizers.base import BOS, EOS, PAD, SPECIAL_TOKENS, UNK, Tokenizer
from tokrl.tokenizers.bpe import BPETokenizer
from tokrl.tokenizers.char import CharTokenizer
from tokrl.tokenizers.text import join_words, split_text
from tokrl.tokenizers.word import WordTokenizer
from tokrl.tokenizers.wordpiece import WordPieceTokenizer

__all__ = [
    "BOS",
    "EOS",
    "PAD",
    "SPECIAL_TOKENS",
    "UNK",
    "BPETokenizer",
    "CharTokenizer",
    "Tokenizer",
    "WordPieceTokenizer",
    "WordTokenizer",
    "join_words",
    "split_text",
]
