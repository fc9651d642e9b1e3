"""Where pairs of neighbouring tokens occur: what BPE and WordPiece learn from."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from operator import add

from tokrl.tokenizers.base import check_texts


class PairIndex:
    """The distinct words of a corpus, split into tokens, and the pairs in them.

    A word is a string with one character for each token: `chr(n)` for token n. A
    pair is a string of two. So a merge is a search in strings, and the order of
    pairs is the order of their token numbers.

    counts  how often each pair occurs in the corpus
    places  the words (by number) in which it occurs, or did once

    A merge looks only at the words that hold the pair and changes only the counts
    of its neighbours: the corpus is never read a second time.
    """

    def __init__(self, words: Mapping[str, int]):
        """words: how often each word occurs in the corpus."""
        self._words = list(words)
        self._frequencies = list(words.values())
        self.places: dict[str, list[int]] = defaultdict(list)
        for i, word in enumerate(self._words):
            for pair in map(add, word, word[1:]):
                self.places[pair].append(i)
        self.counts = {pair: self._count(at) for pair, at in self.places.items()}

    def _count(self, places: Iterable[int]) -> int:
        """How often the corpus has what these places have once."""
        return sum(map(self._frequencies.__getitem__, places))

    def merge(self, pair: str, new: str) -> tuple[int, list[str], list[str]]:
        """Make every `pair` one token, `new`; of overlapping ones (`aaa`) the left.

        Returns how many pairs of the corpus became one token, the pairs that
        occur less often now, and the pairs that occur for the first time.
        """
        first, second = pair
        words = self._words
        left, right = defaultdict(list), defaultdict(list)  # neighbour: places
        touching: list[int] = []  # where the pair follows itself
        for i in self.places.pop(pair):
            parts = words[i].split(pair)
            if len(parts) == 2:  # much the most frequent case, worth its lines
                head, tail = parts
                words[i] = head + new + tail
                if head:
                    left[head[-1]].append(i)
                if tail:
                    right[tail[0]].append(i)
            elif len(parts) > 2:
                words[i] = new.join(parts)
                if parts[0]:
                    left[parts[0][-1]].append(i)
                for between in parts[1:-1]:
                    if between:
                        right[between[0]].append(i)
                        left[between[-1]].append(i)
                    else:
                        touching.append(i)
                if parts[-1]:
                    right[parts[-1][0]].append(i)
        changes = [(token + first, token + new, at) for token, at in left.items()]
        changes += [(second + token, new + token, at) for token, at in right.items()]
        if touching:
            changes.append((second + first, new + new, touching))
        for before, after, at in changes:
            count = self._count(at)
            self.counts[before] -= count
            self.counts[after] = count
            self.places[after] = at
        # What the neighbours have not taken from the pair's own count was merged.
        merged, self.counts[pair] = self.counts[pair], 0
        return merged, [change[0] for change in changes], [c[1] for c in changes]


def count_words(
    texts: Iterable[str], split: Callable[[str], Iterable[str]]
) -> Counter[str]:
    """How often each word occurs in a corpus.

    Raises TypeError for what is no text, ValueError if there is not one word.
    """
    words: Counter[str] = Counter()
    for text in check_texts(texts):
        words.update(split(text))
    if not words:
        raise ValueError("the corpus has no words: give at least one text")
    return words
