"""The records that pass between the rooms: frozen, with a shape for each field."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Rollout:
    """Sampled completions and their rewards.

    B rows: P prompts times G completions each, the G of one prompt side by side.
    S is the prompt length, T the completion length.

    prompt_ids, prompt_mask   (B, S), left-padded
    completion_ids            (B, T), right-padded
    completion_mask           (B, T), 1 on each sampled token that counts, the end
                              token included
    old_logprobs              (B, T), nats, under the policy that sampled them
    token_rewards             (B, T), 0 where the mask is 0
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    old_logprobs: Tensor
    token_rewards: Tensor
    group_size: int = 1

    def __post_init__(self):
        rows = self.prompt_ids.shape[0]
        if self.prompt_mask.shape != self.prompt_ids.shape:
            raise ValueError(
                f"prompt_mask has shape {tuple(self.prompt_mask.shape)}, "
                f"prompt_ids {tuple(self.prompt_ids.shape)}: they must be equal"
            )
        shape = (rows, self.completion_ids.shape[-1])
        for name in (f.name for f in fields(self)[2:6]):
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(
                    f"{name} has shape {tuple(getattr(self, name).shape)}, "
                    f"expected (B, T) = {shape}"
                )
        if self.group_size < 1 or rows % self.group_size:
            raise ValueError(
                f"group_size={self.group_size} does not divide the {rows} rows"
            )

    @property
    def rewards(self) -> Tensor:
        """Outcome rewards (B,): the sum of each row's token rewards."""
        return self.token_rewards.sum(-1)

    @property
    def lengths(self) -> Tensor:
        """Number of tokens (B,) that count in each completion."""
        return self.completion_mask.sum(-1)

    @property
    def tokens(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the functions of `tokrl.scoring` read: ids and masks, in their order."""
        return (
            self.prompt_ids, self.prompt_mask, self.completion_ids, self.completion_mask
        )  # fmt: skip

    def __len__(self) -> int:
        return self.completion_ids.shape[0]

    def take(self, rows: Tensor, group_size: int = 1) -> "Rollout":
        """These rows (a long tensor of row numbers) as a rollout of their own."""
        tensors = {f.name: getattr(self, f.name)[rows] for f in fields(self)[:6]}
        return Rollout(**tensors, group_size=group_size)

    @staticmethod
    def join(parts: Sequence["Rollout"]) -> "Rollout":
        """Rollouts with groups of one size as one, padded with 0 to the longest.

        Raises ValueError for none, or groups of several sizes.
        """
        sizes = sorted({part.group_size for part in parts})
        if len(sizes) != 1:
            raise ValueError(
                f"rollouts with groups of {sizes}: give at least one, all of one size"
            )
        prompt = max(part.prompt_ids.shape[1] for part in parts)
        completion = max(part.completion_ids.shape[1] for part in parts)
        columns: dict[str, list[Tensor]] = {}
        for part in parts:
            for name in (f.name for f in fields(part)[:6]):
                tensor = getattr(part, name)
                left = name.startswith("prompt")
                more = (prompt if left else completion) - tensor.shape[1]
                padded = pad(tensor, (more, 0) if left else (0, more))
                columns.setdefault(name, []).append(padded)
        return replace(parts[0], **{name: torch.cat(c) for name, c in columns.items()})
