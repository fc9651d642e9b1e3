"""Token rewards from the world, which knows what is possible and how likely."""

import math
from collections.abc import Sequence
from itertools import accumulate

from tokrl.rewards.pieces import token_bytes
from tokrl.tokenizers import EOS, Tokenizer, WordTokenizer, join_words
from tokrl.world import END, World


def possible_bytes(world: World, text: bytes, lang: str = "en") -> int:
    """How many bytes of a text a possible story begins with.

    len(text) if some story begins with all of it; else the index of the first byte
    after which none does. Words, spaces and marks must be just as a story has them.
    """
    try:
        characters = text.decode()
    except UnicodeDecodeError as error:  # perhaps cut off inside a character
        characters = text[: error.start].decode()
    words = world.split(characters, lang)
    words = words[: world.first_error(words, lang)]
    while not text.startswith(join_words(words).encode()):
        words.pop()  # the words are right, the spaces between them are not
    rest = text[len(join_words(words).encode()) :]
    if not rest:
        return len(text)
    # A word that is not finished, or is wrong: how much of it may be written? Words
    # before it are sure: a story splits into its words, however it goes on.
    last = join_words(words[-1:])
    following = [
        join_words([*words[-1:], word]).removeprefix(last).encode()
        for word in world.next_word_probs(words, lang)
        if word != END
    ]
    shared = max((_same_start(piece, rest) for piece in following), default=0)
    return len(text) - len(rest) + shared


def _same_start(a: bytes, b: bytes) -> int:
    different = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(different, min(len(a), len(b)))


def whole_story(world: World, text: bytes, lang: str = "en") -> bool:
    """Whether a text is a possible story from its beginning to its end."""
    words = world.split(text.decode(errors="replace"), lang)
    spaced = join_words(words).encode() == text
    return spaced and world.first_error([*words, END], lang) is None


class ValidityReward:
    """Token reward: -1 on the token that makes the text impossible in the world.

    That is the first token after which no possible story begins with the text so
    far, prompt included. All tokens before it get 0, and those after it are not
    judged (None). Where it falls:

    - A word tokenizer writes whole words, so it falls on the first impossible word.
    - Any other token may end inside a word, and then it is wrong only if no possible
      word goes on so: "Tom go" may become "Tom goes", and is wrong once a space
      follows. Spaces are judged where the tokens write them (characters, BPE).
    - The end token is wrong if the story is not at its end; `<pad>` and `<bos>`
      always are, and so is whatever follows the end token.

    It judges the text, not its spelling: a word may be made of other tokens than
    `encode` makes it of.

    The sum over a completion is -1 if it holds an error and 0 if not: the best
    expected return is 0, and 1 + return is the share of valid stories.
    A completion that stops before its story ends is judged as far as it goes; give
    `world.max_words(lang)` as the number of new words to rule that out.
    """

    __name__ = "validity"

    def __init__(self, world: World, tokenizer: Tokenizer, lang: str = "en"):
        self.world, self.tokenizer, self.lang = world, tokenizer, lang

    def words(self, ids: Sequence[int]) -> list[str]:
        """The ids of a word tokenizer as words of the world, its end word included."""
        return [END if t == EOS else t for t in self.tokenizer.to_tokens(ids)]

    def first_error(self, prompt: str, ids: Sequence[int]) -> int | None:
        """Index of the token of a completion that gets -1, or None."""
        if isinstance(self.tokenizer, WordTokenizer):
            before = self.tokenizer.tokens(prompt)
            at = self.world.first_error([*before, *self.words(ids)], self.lang)
        else:
            before = self.tokenizer.encode(prompt)
            at = self._first_error([*before, *ids])
        return None if at is None else max(at - len(before), 0)

    def _first_error(self, ids: Sequence[int]) -> int | None:
        """Index of the first token of a whole text that is wrong, or None."""
        stops = (self.tokenizer.pad_id, self.tokenizer.bos_id, self.tokenizer.eos_id)
        stop = next((t for t, i in enumerate(ids) if i in stops), len(ids))
        pieces = token_bytes(self.tokenizer, ids[:stop])
        text = b"".join(pieces)
        possible = possible_bytes(self.world, text, self.lang)
        for t, end in enumerate(accumulate(map(len, pieces))):
            if end > possible:
                return t
        if stop == len(ids):
            return None
        ends = ids[stop] == self.tokenizer.eos_id
        if not ends or not whole_story(self.world, text, self.lang):
            return stop
        return stop + 1 if len(ids) > stop + 1 else None

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        **columns,
    ) -> list[list[float | None]]:
        rewards = []
        for prompt, ids in zip(prompts, completion_ids, strict=True):
            row: list[float | None] = [0.0] * len(ids)
            at = self.first_error(prompt, ids)
            if at is not None:
                row[at] = -1.0
                row[at + 1 :] = [None] * (len(ids) - at - 1)
            rewards.append(row)
        return rewards


class FluencyReward:
    """Token reward: the log-prob, nats, of each token in the world's own text.

    r(s_t, y_t) = max(log p(y_t | s_t), least), with p from `World.token_probs`: along
    a story that the tokenizer knows, with `least` far enough below, the sum is
    `story.log_prob`. An impossible token gets `least`, and those after it are not
    judged (None). Here a token must be the one that `encode` makes: the same text in
    other tokens has probability 0.

    Whoever maximises it alone writes one likely story for ever; and as every token
    costs something, an early mistake may be the cheapest of all: give a `least` below
    the log-prob of a whole story. With an entropy bonus of weight 1 the best policy is
    the world's own distribution, but for a share of about exp(least) of mistakes.

    least  nats, below 0
    Takes about a millisecond for each token; see `World.token_probs`.
    """

    __name__ = "fluency"

    def __init__(
        self,
        world: World,
        tokenizer: Tokenizer,
        lang: str = "en",
        least: float = -100.0,
    ):
        if not -math.inf < least < 0:
            raise ValueError(f"least={least!r}: give a finite number below 0, in nats")
        self.world, self.tokenizer, self.lang = world, tokenizer, lang
        self.least = least

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        **columns,
    ) -> list[list[float | None]]:
        return [
            self._row(self.tokenizer.encode(prompt), ids)
            for prompt, ids in zip(prompts, completion_ids, strict=True)
        ]

    def _row(self, before: list[int], ids: Sequence[int]) -> list[float | None]:
        row: list[float | None] = [None] * len(ids)
        for t, token in enumerate(ids):
            prefix = [*before, *ids[:t]]
            probs = self.world.token_probs(prefix, self.tokenizer, self.lang)
            prob = probs.get(int(token), 0.0)
            row[t] = max(math.log(prob), self.least) if prob else self.least
            if not prob:
                break
        return row
