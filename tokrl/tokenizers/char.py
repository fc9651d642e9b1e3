"""Characters as tokens."""

from collections.abc import Iterable, Sequence

from tokrl.tokenizers.base import SPECIAL_TOKENS, UNK, Tokenizer, check_size
from tokrl.tokenizers.pairs import count_words

BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
_BYTES = {token: byte for byte, token in enumerate(BYTE_TOKENS)}


class CharTokenizer(Tokenizer):
    """One token for each character.

    A character that the vocabulary lacks falls back to its UTF-8 bytes, one token
    (`<0xE7>`) for each, so that any text comes back from its ids as it was. Without
    the 256 byte tokens (`byte_fallback=False`) it becomes `<unk>`.

    Source of the fallback: Kudo and Richardson 2018, "SentencePiece" (its option
    `byte_fallback`; Llama's vocabulary has it).
    """

    kind = "char"

    def __init__(self, vocab: Sequence[str]):
        """vocab: special tokens, then all or none of the byte tokens, characters."""
        super().__init__(vocab)
        self.byte_fallback = all(token in self.vocab for token in BYTE_TOKENS)
        for token in self._plain:
            if len(token) > 1 and not (self.byte_fallback and token in _BYTES):
                raise ValueError(
                    f"token {token!r} is no character: a vocabulary of characters "
                    "may also hold the 256 byte tokens, all of them"
                )

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int | None = None,
        byte_fallback: bool = True,
    ) -> "CharTokenizer":
        """Take the most frequent characters of a corpus.

        vocab_size     size with the 4 special tokens and, if wanted, the 256 byte
                       tokens; None takes every character
        byte_fallback  spell other characters as bytes instead of `<unk>`
        Ties are broken by the order of the characters. Raises ValueError for an
        empty corpus or a size that leaves no room for a character.
        """
        vocab = [*SPECIAL_TOKENS, *(BYTE_TOKENS if byte_fallback else ())]
        if vocab_size is not None:
            why = "4 special tokens and a character"
            if byte_fallback:
                why = "4 special tokens, 256 for bytes (byte_fallback) and a character"
            check_size(vocab_size, len(vocab) + 1, why)
        counts = count_words(texts, iter)
        ranked = sorted(counts, key=lambda character: (-counts[character], character))
        return cls([*vocab, *ranked][:vocab_size])

    def _split(self, text: str) -> str:
        return text

    def _pieces(self, word: str) -> list[str]:
        if word in self.vocab or not self.byte_fallback:
            return [word]
        return [BYTE_TOKENS[byte] for byte in word.encode()]

    def _join(self, tokens: list[str]) -> str:
        text, pending = [], bytearray()
        for token in [*tokens, ""]:
            if token in _BYTES:
                pending.append(_BYTES[token])
                continue
            if pending:
                text.append(_text(pending))
                pending.clear()
            text.append(token)
        return "".join(text)

    def _backend(self):
        from tokenizers import Tokenizer, decoders, models

        # The library's BPE without merges leaves characters, and knows the fallback.
        model = models.BPE(
            self.vocab, [], unk_token=UNK, byte_fallback=self.byte_fallback
        )
        backend = Tokenizer(model)
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
        return backend


def _text(data: bytes) -> str:
    """The text that bytes spell, or a mark for each where they spell none."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(data)
