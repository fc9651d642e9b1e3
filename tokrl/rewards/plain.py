"""Rewards that need no world: lengths, and words that should be there."""

from collections.abc import Sequence

from tokrl.rewards.pieces import text_so_far, token_bytes
from tokrl.tokenizers import Tokenizer, split_text


class LengthReward:
    """Token reward: the same number for every token, the end token included.

    per_token  above 0 pays for long texts, below 0 for short ones
    """

    __name__ = "length"

    def __init__(self, per_token: float):
        self.per_token = per_token

    def __call__(self, prompts, completions, completion_ids, **columns):
        return [[self.per_token] * len(ids) for ids in completion_ids]


def overlong_penalty(length: int, max_length: int, cushion: int) -> float:
    """What a completion of `length` tokens pays for its length, from -1 to 0.

    Nothing up to max_length - cushion, from there on a straight line to -1 at
    max_length: a completion that is about to be cut off learns it before it is.
    Source: Yu et al. 2025 (DAPO), equation 13.
    Raises ValueError unless 0 < cushion <= max_length.
    """
    if not 0 < cushion <= max_length:
        raise ValueError(
            f"cushion={cushion!r}: give a number above 0 and at most "
            f"max_length={max_length!r}"
        )
    return -min(max(length - (max_length - cushion), 0) / cushion, 1.0)


class OverlongReward:
    """Sequence reward: `overlong_penalty` of a completion's number of tokens."""

    __name__ = "overlong"

    def __init__(self, max_length: int, cushion: int):
        overlong_penalty(0, max_length, cushion)  # to say now what is wrong
        self.max_length, self.cushion = max_length, cushion

    def __call__(self, prompts, completions, completion_ids, **columns):
        return [
            overlong_penalty(len(ids), self.max_length, self.cushion)
            for ids in completion_ids
        ]


class MentionReward:
    """Token reward: 1 on the token with which the completion first names something.

    That is the first token after which the completion so far, split into words
    (Chinese: into characters), holds those of `keyword` in a row; it depends on no
    later token. All others get 0, and the sum is 1 or 0. Tokens that end inside words
    may earn it on the way: for "red", `red` of `red` + `der` is enough.

    keyword  a word, or a few in a row, in either language
    """

    __name__ = "mention"

    def __init__(self, keyword: str, tokenizer: Tokenizer):
        self.keyword, self.tokenizer = _checked(keyword), tokenizer

    def first_mention(self, ids: Sequence[int]) -> int | None:
        """Index of the token that gets 1, or None."""
        wanted = split_text(self.keyword)
        text = b""
        for t, piece in enumerate(token_bytes(self.tokenizer, ids)):
            text += piece
            words = split_text(text_so_far(text))
            for start in range(len(words) - len(wanted) + 1):
                if words[start : start + len(wanted)] == wanted:
                    return t
        return None

    def __call__(self, prompts, completions, completion_ids, **columns):
        rewards = []
        for ids in completion_ids:
            row = [0.0] * len(ids)
            at = self.first_mention(ids)
            if at is not None:
                row[at] = 1.0
            rewards.append(row)
        return rewards


class EndingReward:
    """Sequence reward: 1 if the last words of a completion are `keyword`, else 0.

    Punctuation marks after them do not matter.
    """

    __name__ = "ending"

    def __init__(self, keyword: str):
        self.keyword = _checked(keyword)

    def _words(self, text: str) -> list[str]:
        words = split_text(text)
        while words and not words[-1][0].isalnum():
            words.pop()
        return words

    def __call__(self, prompts, completions, completion_ids, **columns):
        wanted = self._words(self.keyword)
        return [
            float(self._words(text)[-len(wanted) :] == wanted) for text in completions
        ]


def _checked(keyword: str) -> str:
    if not any(word[0].isalnum() for word in split_text(keyword)):
        raise ValueError(f"keyword={keyword!r}: give at least one word")
    return keyword
