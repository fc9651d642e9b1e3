"""Text to words and back, for scripts with spaces and for Chinese without."""

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers.decoders import Decoder
    from tokenizers.pre_tokenizers import PreTokenizer

_HAN = "\u3400-\u4dbf\u4e00-\u9fff"
_PIECES = re.compile(rf"<\w+>|[{_HAN}]+|[^\W{_HAN}]+(?:['’][^\W{_HAN}]+)*|[^\w\s]")
_TIGHT_SCRIPT = rf"{_HAN}\u3000-\u303f\uff00-\uffef"
_TIGHT = re.compile(f"[{_TIGHT_SCRIPT}]")
_CLOSING = frozenset(".,;:!?)]}'’”%")
_OPENING = frozenset("([{‘“")


def split_text(text: str, vocabulary: Collection[str] = ()) -> list[str]:
    """Words and punctuation marks of a text, in order.

    Words are found by spaces and punctuation. Chinese writes no spaces: there the
    longest word of `vocabulary` is taken each time, a single character where none
    fits. A name in angle brackets (`<eos>`) is one word.
    """
    known = vocabulary if isinstance(vocabulary, (set, dict)) else set(vocabulary)
    longest = max(map(len, known), default=1)
    words = []
    for piece in _PIECES.findall(text):
        if not "\u3400" <= piece[0] <= "\u9fff":
            words.append(piece)
            continue
        while piece:
            size = min(longest, len(piece))
            while size > 1 and piece[:size] not in known:
                size -= 1
            words.append(piece[:size])
            piece = piece[size:]
    return words


def hf_splitter(vocabulary: Collection[str]) -> "PreTokenizer":
    """`split_text` with this vocabulary, for the `tokenizers` library."""
    from tokenizers import Regex, pre_tokenizers

    letter = r"[\p{L}\p{N}_]"  # what \w means in Python, said in full
    word = rf"[{letter}&&[^{_HAN}]]"
    known = [w for w in vocabulary if re.fullmatch(f"[{_HAN}]+", w)]
    han = "|".join([*sorted(known, key=len, reverse=True), f"[{_HAN}]"])
    mark = r"[^\p{L}\p{N}_\s\x1c-\x1f]"  # to Python, these four are spaces
    pattern = rf"<{letter}+>|{han}|{word}+(?:['’]{word}+)*|{mark}"
    return pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)


def join_words(words: Sequence[str]) -> str:
    """The text of a list of words: spaces between them where the script has them."""
    text = ""
    for word in words:
        if (
            text
            and word
            and word[0] not in _CLOSING
            and text[-1] not in _OPENING
            and not (_TIGHT.match(word[0]) or _TIGHT.match(text[-1]))
        ):
            text += " "
        text += word
    return text


def hf_decoder(continuing: str = "\0") -> "Decoder":
    """`join_words` for the `tokenizers` library.

    continuing: what a token starts with that goes on with the word before it.
    """
    from tokenizers import Regex, decoders

    closing = re.escape("".join(sorted(_CLOSING)))
    opening = re.escape("".join(sorted(_OPENING)))
    return decoders.Sequence(
        [
            decoders.WordPiece(prefix=continuing, cleanup=False),
            decoders.Fuse(),
            decoders.Replace(Regex(rf" (?=[{closing}{_TIGHT_SCRIPT}])"), ""),
            decoders.Replace(Regex(rf"(?<=[{opening}{_TIGHT_SCRIPT}]) "), ""),
        ]
    )
