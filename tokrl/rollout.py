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


def encode_prompts(
    prompts: Sequence[str], tokenizer: Tokenizer
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts as ids and mask (P, S): `<bos>`, the prompt's tokens, left-padded."""
    rows = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]
    return pad(rows, tokenizer.pad_id, side="left")


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
    """
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
        for name, column in (columns or {}).items()
    }
    token_rewards, mask = token_reward_matrix(
        reward, repeated, texts, rows, mask, **repeated_columns
    )
    return Rollout(
        prompt_ids, prompt_mask, ids, mask, logprobs, token_rewards, group_size
    )
