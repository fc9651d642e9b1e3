"""What every tokenizer shares: special tokens, ids, a word cache, files."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

from tokrl.runs import read_json, write_json

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIAL_TOKENS = (PAD, BOS, EOS, UNK)


class Tokenizer:
    """A vocabulary and the way between text and ids.

    `<pad>`, `<bos>`, `<eos>` and `<unk>` have the ids 0 to 3 in every tokenizer.
    `encode` never makes the first three: a text that spells `<eos>` is a text like
    any other, and only a program that means the end of a text writes `eos_id`.

    A subclass says how a text splits into words (`_split`), how a word splits into
    tokens (`_pieces`) and how tokens join into text (`_join`); `kind` names it in
    files. Words are encoded once and kept in a bounded cache.
    """

    kind: ClassVar[str] = "base"
    pad_id, bos_id, eos_id, unk_id = range(4)
    _kinds: ClassVar[dict[str, type["Tokenizer"]]] = {}

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        Tokenizer._kinds[cls.kind] = cls

    def __init__(self, vocab: Sequence[str]):
        """vocab: the tokens in the order of their ids, special tokens first."""
        self._tokens = tuple(vocab)
        for i, token in enumerate(self._tokens):
            if not isinstance(token, str) or not token:
                raise ValueError(f"token {i} is {token!r}: give strings of characters")
        if self._tokens[: len(SPECIAL_TOKENS)] != SPECIAL_TOKENS:
            raise ValueError(
                f"the vocabulary starts with {self._tokens[:4]}: it must start with "
                f"{SPECIAL_TOKENS}"
            )
        self.vocab: dict[str, int] = {t: i for i, t in enumerate(self._tokens)}
        if len(self.vocab) < len(self._tokens):
            twice = sorted({t for t in self._tokens if self._tokens.count(t) > 1})
            raise ValueError(f"tokens occur twice in the vocabulary: {twice[:5]}")
        self._plain = {t: i for t, i in self.vocab.items() if t not in SPECIAL_TOKENS}
        self._cache = _WordCache(self._word_ids)

    def __len__(self) -> int:
        return len(self._tokens)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} tokens)"

    # What a subclass gives.

    def _split(self, text: str) -> Iterable[str]:
        raise NotImplementedError

    def _pieces(self, word: str) -> list[str]:
        """The tokens of a word; what the vocabulary lacks is left as it is."""
        raise NotImplementedError

    def _join(self, tokens: list[str]) -> str:
        raise NotImplementedError

    def _backend(self) -> "tokenizers.Tokenizer":
        raise NotImplementedError

    # Text to ids and back.

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text, as strings; unknown ones are left as they are."""
        return [t for word in self._split(check_text(text)) for t in self._pieces(word)]

    def encode(self, text: str) -> list[int]:
        """The ids of a text; what the vocabulary lacks becomes `<unk>`.

        Raises TypeError if it is no string, ValueError if it is not Unicode text.
        """
        words = self._split(check_text(text))
        return list(chain.from_iterable(map(self._cache.__getitem__, words)))

    def separates(self, left: str, right: str) -> bool:
        """Whether `left + right` has the tokens of `left`, then those of `right`.

        Byte-pair encoding merges across the words of a Chinese sentence, which
        nothing separates: there the answer is no.
        """
        return [*self._split(left + right)] == [*self._split(left), *self._split(right)]

    def _word_ids(self, word: str) -> tuple[int, ...]:
        return tuple([self._plain.get(t, self.unk_id) for t in self._pieces(word)])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens other than `<unk>` are dropped."""
        silent = (self.pad_id, self.bos_id, self.eos_id)
        return self._join(self.to_tokens(i for i in ids if int(i) not in silent))

    def to_ids(self, tokens: Iterable[str]) -> list[int]:
        """The ids of tokens, special ones included; of others the id of `<unk>`."""
        return [self.vocab.get(token, self.unk_id) for token in tokens]

    def to_tokens(self, ids: Iterable[int]) -> list[str]:
        """The tokens of ids, special ones included.

        Raises ValueError for an id outside the vocabulary.
        """
        tokens = []
        for i in map(int, ids):
            if not 0 <= i < len(self._tokens):
                raise ValueError(f"id {i}: this tokenizer has ids 0 to {len(self) - 1}")
            tokens.append(self._tokens[i])
        return tokens

    def readable(self, token: str) -> str:
        """A token as a reader should see it."""
        return token

    # Files and other libraries.

    def _state(self) -> dict[str, Any]:
        """The arguments that make this tokenizer again, ready for JSON."""
        return {"vocab": list(self._tokens)}

    def save(self, path: str | os.PathLike) -> None:
        """Write the tokenizer as one JSON file, atomically."""
        write_json(path, {"kind": self.kind, **self._state()})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """Read a tokenizer that `save` wrote; `Tokenizer.load` reads any kind.

        Raises ValueError for a file that is damaged or of another kind.
        """
        data = read_json(path, "tokenizer file")
        kind = data.pop("kind", None) if isinstance(data, dict) else data
        found = Tokenizer._kinds.get(kind) if isinstance(kind, str) else None
        if found is None or not issubclass(found, cls):
            wanted = cls.kind if cls is not Tokenizer else " or ".join(Tokenizer._kinds)
            raise ValueError(f"{path} holds {kind!r}, not a tokenizer of kind {wanted}")
        try:
            return found(**data)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is not a whole {kind} tokenizer ({error}): write it again "
                "with save"
            ) from error

    def to_hf(self) -> "PreTrainedTokenizerFast":
        """The same tokenizer for `transformers`: it gives the same ids.

        Like here, special tokens in a text are not parsed (`split_special_tokens`)
        and none are added. `skip_special_tokens=True` in its `decode` also drops
        `<unk>`. Characters younger than the Unicode tables of the `tokenizers`
        library (version 16, of 2024) may count as letters or marks here and not
        there.
        """
        # Importing transformers takes seconds, which most readers of text can save.
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(
            tokenizer_object=self._backend(),
            pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNK,
            split_special_tokens=True, clean_up_tokenization_spaces=False,
        )  # fmt: skip


class _WordCache(dict):
    """Ids by word, computed when first asked for; emptied when it is full."""

    MOST_WORDS = 1 << 16
    LONGEST = 100  # characters: a longer word is hardly met twice

    def __init__(self, word_ids: Callable[[str], tuple[int, ...]]):
        self._word_ids = word_ids

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = self._word_ids(word)
        if len(word) <= self.LONGEST:
            if len(self) >= self.MOST_WORDS:
                self.clear()
            self[word] = ids
        return ids


def check_text(text: str) -> str:
    """The text itself, if it is one.

    Raises TypeError if it is no string, ValueError if it holds a lone surrogate:
    half a character, which no file and no byte can spell.
    """
    if not isinstance(text, str):
        raise TypeError(f"the text is a {type(text).__name__}: give a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        raise ValueError(
            f"the text holds half a character, U+{half:04X}, at index {error.start}: "
            "read it again with the right encoding"
        ) from None
    return text


def check_texts(texts: Iterable[str]) -> Iterator[str]:
    """The texts of a corpus one by one, each checked.

    Raises TypeError for a single string, which would pass for a list of letters.
    """
    if isinstance(texts, str):
        raise TypeError("the corpus is a string: give a list of texts")
    return map(check_text, texts)


def check_size(vocab_size: int, least: int, why: str) -> None:
    """Raise ValueError if a vocabulary of this size leaves no room for `why`."""
    if not isinstance(vocab_size, int) or vocab_size < least:
        raise ValueError(f"vocab_size={vocab_size!r}: give at least {least}: {why}")
