"""Byte-pair encoding over bytes, as in GPT-2.

Sources: Sennrich, Haddow and Birch 2016, "Neural machine translation of rare words
with subword units", algorithm 1; Radford et al. 2019, "Language models are
unsupervised multitask learners", section 2.2, for the bytes.
"""

from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from itertools import pairwise

import regex

from tokrl.runs import collector_paused
from tokrl.tokenizers.base import SPECIAL_TOKENS, Tokenizer, check_size
from tokrl.tokenizers.pairs import PairIndex, count_words

# GPT-2's words: an English clitic, or letters, or digits, or other marks, each with
# the space before it; of several spaces the last one goes with the next word.
_WORDS = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d"
    r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?!\S)|\s+"
)


def _byte_letters() -> list[str]:
    """A visible character for each byte, by number of the byte.

    A byte that is a visible character in Latin-1 stands for itself; the others get
    the characters from U+0100 on. A space becomes `Ġ`, a line break `Ċ`.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in visible else chr(next(others)) for b in range(256)]


BYTE_LETTERS = _byte_letters()
ALPHABET = sorted(BYTE_LETTERS)
_BYTES = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}
# Byte to place in the alphabet: training counts tokens from 0, the first letter.
_PLACES = bytes(map(ALPHABET.index, BYTE_LETTERS))


class BPETokenizer(Tokenizer):
    """Tokens are bytes and what the most frequent pairs of tokens were merged into.

    The 256 bytes are in the vocabulary, so that any text has tokens, `<unk>` is
    never needed, and decoding gives back the text exactly. A token is spelt with
    one visible character for each byte (`Ġred` is " red"); `readable` undoes that.
    """

    kind = "bpe"

    def __init__(
        self, vocab: Sequence[str], merges: Iterable[tuple[str, str] | str] = ()
    ):
        """A tokenizer from its tables; `train` makes them from texts.

        vocab   the tokens in the order of their ids: special ones, bytes, merged
        merges  pairs of tokens in the order in which they are merged; or each pair
                as one string with a space in it, as in GPT-2's `merges.txt`
        Raises ValueError if a byte, or a part or result of a merge, is missing.
        """
        super().__init__(vocab)
        self.merges: list[tuple[str, str]] = [
            tuple(m.split(" ") if isinstance(m, str) else m) for m in merges
        ]
        if missing := [letter for letter in ALPHABET if letter not in self.vocab]:
            raise ValueError(f"the vocabulary lacks bytes: {missing[:5]}")
        for token in self._plain:
            if not all(letter in _BYTES for letter in token):
                raise ValueError(f"token {token!r} is not spelt with letters of bytes")
        self._ranks: dict[tuple[str, str], tuple[int, str]] = {}
        for rank, pair in enumerate(self.merges):
            known = (token in self._plain for token in (*pair, "".join(pair)))
            if len(pair) != 2 or not all(known):
                raise ValueError(
                    f"merge {rank} is {pair}: give two tokens of the vocabulary that "
                    "give a third"
                )
            self._ranks[pair] = (rank, "".join(pair))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "BPETokenizer":
        """Learn the merges of a corpus.

        vocab_size  size with the 4 special tokens and the 256 bytes; the vocabulary
                    stays smaller where the corpus has no more pairs to merge
        The vocabulary and the merges are those of `tokenizers.trainers.BpeTrainer`.
        Raises ValueError for an empty corpus or a size below 260.
        """
        with collector_paused():
            merges = [pair for pair, _ in cls.merge_steps(texts, vocab_size)]
        return cls([*SPECIAL_TOKENS, *ALPHABET, *map("".join, merges)], merges)

    @staticmethod
    def merge_steps(
        texts: Iterable[str], vocab_size: int
    ) -> Iterator[tuple[tuple[str, str], int]]:
        """The steps of training: (pair, how often it occurs), merge by merge.

        The most frequent pair comes first; of equally frequent ones, the one with
        the smaller ids.
        """
        check_size(vocab_size, 260, "4 special tokens and 256 bytes")
        words = {
            word.encode().translate(_PLACES).decode("latin-1"): count
            for word, count in count_words(texts, _WORDS.findall).items()
        }
        return _merge_steps(words, vocab_size - len(SPECIAL_TOKENS))

    def _split(self, text: str) -> list[str]:
        return _WORDS.findall(text)

    def _pieces(self, word: str) -> list[str]:
        """Merge the bytes of a word: always the pair that was learnt first.

        A heap holds the possible merges as (rank, place of the left token, result);
        `before` and `after` link the tokens that are left. A word of n bytes takes
        of the order of n log n steps.
        """
        tokens = [BYTE_LETTERS[byte] for byte in word.encode()]
        end = len(tokens)
        found = self._ranks.get
        heap = [
            (merge[0], i, merge[1])
            for i, pair in enumerate(pairwise(tokens))
            if (merge := found(pair))
        ]
        heapify(heap)
        before, after = list(range(-1, end - 1)), list(range(1, end + 1))
        while heap:
            rank, i, merged = heappop(heap)
            j = after[i]
            # Merges nearby may have used one of the two since: then it is void.
            if j == end or found((tokens[i], tokens[j])) != (rank, merged):
                continue
            tokens[i], tokens[j] = merged, ""
            j = after[i] = after[j]
            if j < end:
                before[j] = i
                if merge := found((merged, tokens[j])):
                    heappush(heap, (merge[0], i, merge[1]))
            h = before[i]
            if h >= 0 and (merge := found((tokens[h], merged))):
                heappush(heap, (merge[0], h, merge[1]))
        return [token for token in tokens if token]

    def _join(self, tokens: list[str]) -> str:
        data = bytes(_BYTES[letter] for token in tokens for letter in token)
        return data.decode(errors="replace")

    def readable(self, token: str) -> str:
        """The text of a token; bytes that are no whole character as `\\xe7`."""
        if token in SPECIAL_TOKENS:
            return token
        data = bytes(_BYTES[letter] for letter in token)
        return data.decode(errors="backslashreplace")

    def _state(self) -> dict:
        return {**super()._state(), "merges": [" ".join(pair) for pair in self.merges]}

    def _backend(self):
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        backend = Tokenizer(models.BPE(self.vocab, self.merges))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        return backend


def _merge_steps(words: dict[str, int], room: int):
    """Steps of training on words spelt as `PairIndex` wants them.

    Each merge gives a token that was not there: a string of bytes is never made of
    two different pairs, as every pair is merged wherever it stands.
    """
    tokens = list(ALPHABET)
    index = PairIndex(words)
    # Its smallest entry is the most frequent pair. Counts only fall: an entry whose
    # count has fallen since it was made is put right when its turn comes.
    heap = [(-count, pair) for pair, count in index.counts.items()]
    heapify(heap)
    while heap and len(tokens) < room:
        count, pair = heap[0]
        if index.counts[pair] != -count:
            heapreplace(heap, (-index.counts[pair], pair))
            continue
        if not count:
            return
        heappop(heap)
        left, right = (tokens[ord(number)] for number in pair)
        yield (left, right), -count
        _, _, new = index.merge(pair, chr(len(tokens)))
        tokens.append(left + right)
        for pair in new:
            heappush(heap, (-index.counts[pair], pair))
