"""Rewards: callables that judge completions, in TRL's calling convention.

A reward is called as `reward(prompts, completions, completion_ids, **columns)` with
lists of texts and of id lists. A sequence reward returns one number per completion;
a token reward returns a list of numbers per completion, one for each token, with
None from the point on where it judges no more (the episode has ended there).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tokrl.tokenizers import EOS, Tokenizer
from tokrl.world import END, World

Reward = Callable[..., list]


class ValidityReward:
    """Token reward: -1 on the first word that is impossible in the world.

    All other words get 0, and words after the first error are not judged (None).
    The sum over a completion is -1 if it holds an error and 0 if not: the best
    expected return is 0, and 1 + return is the share of valid stories.
    A completion that stops before its story ends is judged as far as it goes; give
    `world.max_words(lang)` as the number of new tokens to rule that out.
    """

    __name__ = "validity"

    def __init__(self, world: World, tokenizer: Tokenizer, lang: str = "en"):
        self.world, self.tokenizer, self.lang = world, tokenizer, lang

    def words(self, ids: Sequence[int]) -> list[str]:
        """The ids as words of the world, its end word included."""
        return [END if t == EOS else t for t in self.tokenizer.to_tokens(ids)]

    def first_error(self, prompt: str, ids: Sequence[int]) -> int | None:
        """Index of the first impossible token of a completion, or None."""
        before = self.tokenizer.tokens(prompt)
        at = self.world.first_error([*before, *self.words(ids)], self.lang)
        return None if at is None else max(at - len(before), 0)

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


def token_reward_matrix(
    reward: Reward,
    prompts: Sequence[str],
    completions: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    completion_mask: Tensor,
    **columns,
) -> tuple[Tensor, Tensor]:
    """Call a reward and lay its numbers over the tokens.

    A sequence reward is paid on the last token. Returns token_rewards (B, T) and
    the mask (B, T) of the tokens that count: `completion_mask` without the tokens
    that the reward did not judge.
    Raises ValueError that names the reward, the index and the prompt if it returns
    the wrong number of values, or a value that is not a finite number.
    """
    name = getattr(reward, "__name__", type(reward).__name__)
    rows = reward(
        prompts=prompts,
        completions=completions,
        completion_ids=completion_ids,
        **columns,
    )
    if len(rows) != len(completion_ids):
        raise ValueError(
            f"reward {name!r} returned {len(rows)} values for "
            f"{len(completion_ids)} completions: return one for each"
        )
    token_rewards = torch.zeros(completion_mask.shape)
    mask = completion_mask.clone()
    for i, (row, ids) in enumerate(zip(rows, completion_ids, strict=True)):
        where = f"reward {name!r}, completion {i} of prompt {prompts[i]!r}"
        if not isinstance(row, (list, tuple)):
            row = [0.0] * (len(ids) - 1) + [row]
        if len(row) != len(ids):
            raise ValueError(f"{where}: {len(row)} token rewards for {len(ids)} tokens")
        judged = next((t for t, value in enumerate(row) if value is None), len(row))
        if any(value is not None for value in row[judged:]):
            raise ValueError(f"{where}: a number after None, which ends the episode")
        for t, value in enumerate(row[:judged]):
            if not math.isfinite(value):
                raise ValueError(
                    f"{where}: token {t} got {value!r}, not a finite number"
                )
        token_rewards[i, :judged] = torch.as_tensor(
            row[:judged], dtype=token_rewards.dtype
        )
        mask[i, judged:] = 0
    return token_rewards, mask
