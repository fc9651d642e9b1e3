"""From prompts to judged completions: one batch of experience."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tokrl.batches import Rollout
from tokrl.masking import pad, unpad
from tokrl.rewards import Reward, token_reward_matrix
from tokrl.sampling import generate
from tokrl.tokenizers import Tokenizer

# The names of what a reward, or who calls it, gets beside the columns.
TAKEN = (
    "reward", "prompts", "completions", "completion_ids", "completion_mask", "device"
)  # fmt: skip


def encode_prompts(
    prompts: Sequence[str], tokenizer: Tokenizer
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts as ids and mask (P, S): `<bos>`, the prompt's tokens, left-padded."""
    rows = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]
    return pad(rows, tokenizer.pad_id, side="left")


def check_prompts(prompts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> None:
    """ValueError unless there are prompts, and an entry of each column for each.

    Nor may a column have a name under which a reward gets something else.
    """
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"prompts={prompts!r}: give a list of texts; [''] for none")
    for name, column in columns.items():
        if name in TAKEN:
            raise ValueError(f"columns has {name!r}, which is taken: give another name")
        if len(column) != len(prompts):
            raise ValueError(
                f"columns[{name!r}] has {len(column)} entries for {len(prompts)} "
                "prompts: give one for each"
            )


def collect(
    policy: nn.Module,
    prompts: Sequence[str],
    reward: Reward,
    tokenizer: Tokenizer,
    max_new_tokens: int,
    group_size: int = 1,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> Rollout:
    """Sample `group_size` completions of each prompt and let the reward judge them.

    prompts  texts; an empty one starts from `<bos>` alone
    reward   in TRL's convention, see `tokrl.rewards`
    columns  what else the reward needs of each prompt, such as {"answer": [...]}; it
             gets them by name, one entry for each completion
    Returns a `Rollout` of B = len(prompts) * group_size rows. Tokens that a token
    reward did not judge (None) are masked out.
    Raises ValueError for no prompts, columns that do not fit or a group_size below 1;
    RewardError, a ValueError, for what is wrong with the reward.
    """
    columns = columns or {}
    check_prompts(prompts, columns)
    if group_size < 1:
        raise ValueError(f"group_size={group_size!r}: give at least 1")
    repeated = [prompt for prompt in prompts for _ in range(group_size)]
    prompt_ids, prompt_mask = (
        once.repeat_interleave(group_size, 0)
        for once in encode_prompts(prompts, tokenizer)
    )
    ids, mask, logprobs = generate(
        policy, prompt_ids, prompt_mask, max_new_tokens, temperature,
        eos_id=tokenizer.eos_id, generator=generator, pad_id=tokenizer.pad_id,
    )  # fmt: skip
    rows = unpad(ids, mask)
    texts = [tokenizer.decode(row) for row in rows]
    repeated_columns = {
        name: [value for value in column for _ in range(group_size)]
        for name, column in columns.items()
    }
    token_rewards, mask = token_reward_matrix(
        reward, repeated, texts, rows, mask, **repeated_columns
    )
    return Rollout(
        prompt_ids, prompt_mask, ids, mask, logprobs, token_rewards, group_size
    )
