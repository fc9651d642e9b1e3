"""How much better than expected each token was: from rewards to advantages."""

import torch
from torch import Tensor

from tokrl.masking import require_shape, zero_masked

SCALES = ("std", "none", "batch")


def returns_to_go(
    token_rewards: Tensor, completion_mask: Tensor, gamma: float = 1.0
) -> Tensor:
    """The discounted sum of rewards from each token on, (B, T).

    G_t = r_t + gamma G_{t+1}, where t + 1 is the next token that counts; 0 where
    masked.
    token_rewards, completion_mask: (B, T). Source: Williams 1992.
    Raises ValueError for shapes that differ.
    """
    require_shape(completion_mask, token_rewards=token_rewards)
    mask = completion_mask.bool()
    rewards = _real(zero_masked(token_rewards, mask))
    returns = torch.zeros_like(rewards)
    ahead = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        ahead = torch.where(mask[:, t], rewards[:, t] + gamma * ahead, ahead)
        returns[:, t] = ahead
    return zero_masked(returns, mask)


def compute_gae(
    token_rewards: Tensor,
    values: Tensor,
    completion_mask: Tensor,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and the returns that a critic learns from.

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t)   what one token brought
    A_t = delta_t + gamma gae_lambda A_{t+1}    and those after it
    where t + 1 is the next token that counts; after the last one the episode has
    ended, and the value is 0.

    token_rewards    (B, T), r_t
    values           (B, T), V(s_t), of the state before each token
    completion_mask  (B, T), 1 on the tokens that count
    gae_lambda       1: reward-to-go minus value, unbiased whatever the values are;
                     0: delta_t alone, with little noise, but biased where the values
                     are wrong; between: a compromise
    Returns advantages and returns, A_t + V(s_t), both (B, T) and 0 where masked.
    Source: Schulman et al. 2015 (GAE).
    Raises ValueError for shapes that differ.
    """
    require_shape(completion_mask, token_rewards=token_rewards, values=values)
    mask = completion_mask.bool()
    rewards = _real(zero_masked(token_rewards, mask))
    values = _real(zero_masked(values, mask))
    advantages = torch.zeros_like(rewards + values)
    ahead = next_value = torch.zeros_like(advantages[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        ahead = torch.where(mask[:, t], delta + gamma * gae_lambda * ahead, ahead)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        advantages[:, t] = ahead
    return zero_masked(advantages, mask), zero_masked(advantages + values, mask)


def in_groups(values: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """The rows (B, ...) as groups (P, G, ...), and where a group's are all equal.

    The second, (P, 1, ...), is taken from the largest and the smallest, not from a
    standard deviation: of equal numbers, rounding may make one above 0.
    Raises ValueError unless groups have at least 2 rows and divide B.
    """
    if group_size < 2 or values.shape[0] % group_size:
        raise ValueError(
            f"group_size={group_size} with {values.shape[0]} rows: give at least 2, "
            "and a divisor of the number of rows"
        )
    groups = values.reshape(-1, group_size, *values.shape[1:])
    return groups, groups.amax(1, keepdim=True) == groups.amin(1, keepdim=True)


def leave_one_out(values: Tensor, group_size: int) -> Tensor:
    """For each row (B, ...), the mean of the other rows of its group, (B, ...).

    A baseline that does not depend on the row's own draw, and so leaves the
    expected gradient as it is: of rewards (B,), or of returns-to-go (B, T), each
    token's against those of the others at its place. Source: Kool et al. 2019.
    Raises ValueError unless groups have at least 2 rows and divide B.
    """
    groups, equal = in_groups(_real(values), group_size)
    others = (groups.sum(1, keepdim=True) - groups) / (group_size - 1)
    # Rounding must not turn equal values into a signal, which Adam would magnify.
    return torch.where(equal, groups, others).reshape(values.shape)


def leave_one_out_advantages(
    rewards: Tensor, group_size: int, completion_mask: Tensor
) -> Tensor:
    """Outcome minus the mean outcome of the group's others, on every token (B, T).

    rewards (B,), completion_mask (B, T); 0 where masked.
    Source: Kool et al. 2019; Ahmadian et al. 2024 (RLOO).
    Raises ValueError for rewards of another shape, or as `leave_one_out` does.
    """
    rewards = _real(rewards)
    return on_tokens(rewards - leave_one_out(rewards, group_size), completion_mask)


def group_advantages(
    rewards: Tensor, group_size: int, completion_mask: Tensor, scale: str = "std"
) -> Tensor:
    """Outcome minus the mean outcome of the group, on every token (B, T).

    rewards (B,), completion_mask (B, T); 0 where masked.
    scale  std    divided by the group's standard deviation + 1e-4: prompts on which
                  the outcomes hardly differ count as much as others
                  (GRPO, Shao et al. 2024)
           none   as it is, 1 - 1/G times the advantage of RLOO
                  (Dr. GRPO, Liu et al. 2025)
           batch  divided by the standard deviation of the whole batch + 1e-4
    Standard deviations are with Bessel's correction. Where all outcomes of a group
    are equal there is no signal, and the advantages are exactly 0.
    Raises ValueError for another scale, rewards of another shape, or unless groups
    have at least 2 rows and divide B.
    """
    if scale not in SCALES:
        raise ValueError(f"scale={scale!r}: give one of {', '.join(SCALES)}")
    rewards = _real(rewards)
    groups, equal = in_groups(rewards, group_size)
    centred = torch.where(equal, 0.0, groups - groups.mean(1, keepdim=True))
    if scale == "std":
        centred = centred / (groups.std(1, keepdim=True) + 1e-4)
    elif scale == "batch":
        centred = centred / (rewards.std() + 1e-4)
    return on_tokens(centred.reshape(rewards.shape), completion_mask)


def on_tokens(advantages: Tensor, completion_mask: Tensor) -> Tensor:
    """One number per row (B,) on each token (B, T) of the row; 0 where masked.

    Raises ValueError for numbers of another shape.
    """
    if advantages.shape != completion_mask.shape[:1]:
        raise ValueError(
            f"numbers of shape {tuple(advantages.shape)} for a mask of shape "
            f"{tuple(completion_mask.shape)}: give one for each of its rows, such as "
            "the sum of its token rewards"
        )
    return advantages[:, None] * completion_mask.to(advantages.dtype)


def _real(values: Tensor) -> Tensor:
    """Whole numbers and truth values in torch's default type: a mean is neither."""
    if values.is_floating_point():
        return values
    return values.to(torch.get_default_dtype())
