"""What every tokenizer shares: special tokens, ids, files."""

import os
from collections.abc import Iterable, Sequence

from tokrl.runs import read_json, write_json

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIAL_TOKENS = (PAD, BOS, EOS, UNK)


class Tokenizer:
    """A vocabulary and the way between text and ids.

    `<pad>`, `<bos>`, `<eos>` and `<unk>` have the ids 0 to 3 in every tokenizer.
    A subclass says how text splits into tokens (`tokens`) and how tokens join into
    text (`_join`); `kind` names it in files.
    """

    kind = "base"
    pad_id, bos_id, eos_id, unk_id = range(4)

    def __init__(self, vocab: Sequence[str]):
        """vocab: the tokens in the order of their ids, special tokens first."""
        self._tokens = tuple(vocab)
        if self._tokens[: len(SPECIAL_TOKENS)] != SPECIAL_TOKENS:
            raise ValueError(
                f"the vocabulary starts with {self._tokens[:4]}: it must start with "
                f"{SPECIAL_TOKENS}"
            )
        self.vocab: dict[str, int] = {t: i for i, t in enumerate(self._tokens)}
        if len(self.vocab) < len(self._tokens):
            twice = sorted({t for t in self._tokens if self._tokens.count(t) > 1})
            raise ValueError(f"tokens occur twice in the vocabulary: {twice[:5]}")

    def __len__(self) -> int:
        return len(self._tokens)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} tokens)"

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text, as strings; unknown ones are left as they are."""
        raise NotImplementedError

    def _join(self, tokens: list[str]) -> str:
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """The ids of a text; a token outside the vocabulary becomes `<unk>`."""
        return self.to_ids(self.tokens(text))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens other than `<unk>` are dropped."""
        silent = (self.pad_id, self.bos_id, self.eos_id)
        return self._join(self.to_tokens(i for i in ids if int(i) not in silent))

    def to_ids(self, tokens: Iterable[str]) -> list[int]:
        """The ids of tokens."""
        unknown = self.unk_id
        return [self.vocab.get(token, unknown) for token in tokens]

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

    def save(self, path: str | os.PathLike) -> None:
        """Write the tokenizer as one JSON file, atomically."""
        write_json(path, {"kind": self.kind, "vocab": list(self._tokens)})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """Read a tokenizer that `save` wrote.

        Raises ValueError for a file that is cut off or of another kind.
        """
        data = read_json(path, "tokenizer file")
        if not isinstance(data, dict) or data.get("kind") != cls.kind:
            found = data.get("kind") if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"{path} holds {found!r}, not a {cls.kind!r} tokenizer")
        if not isinstance(data.get("vocab"), list):
            raise ValueError(f"{path} has no list 'vocab': write it again with save")
        return cls(data["vocab"])
