"""The records that pass between the rooms: frozen, with a shape for each field."""

from dataclasses import dataclass, fields

from torch import Tensor


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

    def __len__(self) -> int:
        return self.completion_ids.shape[0]
