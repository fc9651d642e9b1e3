"""What each token writes: the bridge between tokens and text."""

import codecs
from collections.abc import Sequence

from tokrl.tokenizers import BPETokenizer, CharTokenizer, Tokenizer
from tokrl.tokenizers.bpe import BYTE_LETTERS
from tokrl.tokenizers.char import BYTE_TOKENS

_BYTE_OF_LETTER = {letter: bytes([byte]) for byte, letter in enumerate(BYTE_LETTERS)}
_BYTE_OF_TOKEN = {token: bytes([byte]) for byte, token in enumerate(BYTE_TOKENS)}


def token_bytes(tokenizer: Tokenizer, ids: Sequence[int]) -> list[bytes]:
    """What each token adds to the text of `ids`, in bytes.

    Joined they are the text that `decode` gives, in UTF-8. Bytes, not characters:
    a token may end inside a character. `<pad>`, `<bos>` and `<eos>` add nothing. A
    space that `decode` puts between two words belongs to the second.
    """
    silent = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)
    pieces, last = [], []  # last: the token before this one, none at the start
    for i, token in zip(ids, tokenizer.to_tokens(ids), strict=True):
        if i in silent:
            pieces.append(b"")
        elif isinstance(tokenizer, BPETokenizer):
            pieces.append(b"".join(map(_BYTE_OF_LETTER.__getitem__, token)))
        elif isinstance(tokenizer, CharTokenizer):
            pieces.append(_BYTE_OF_TOKEN.get(token) or token.encode())
        else:
            start = len(tokenizer.decode(last))
            pieces.append(tokenizer.decode([*last, i])[start:].encode())
            last = [i]
    return pieces


def text_so_far(data: bytes) -> str:
    """The text of bytes that more may follow: a character only begun is left out.

    What is no UTF-8 is a replacement character, as `decode` has it.
    """
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data)
