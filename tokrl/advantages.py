"""How much better than expected each token was: from rewards to advantages."""

import torch
from torch import Tensor


def returns_to_go(
    token_rewards: Tensor, completion_mask: Tensor, gamma: float = 1.0
) -> Tensor:
    """The discounted sum of rewards from each token on, (B, T).

    G_t = r_t + gamma G_{t+1}, with masked rewards taken as 0; 0 where masked.
    token_rewards, completion_mask: (B, T). Source: Williams 1992.
    """
    mask = completion_mask.bool()
    rewards = torch.where(mask, token_rewards, torch.zeros_like(token_rewards))
    returns = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        following = rewards[:, t] + gamma * following
        returns[:, t] = following
    return torch.where(mask, returns, torch.zeros_like(returns))


def leave_one_out(values: Tensor, group_size: int) -> Tensor:
    """For each row (B,), the mean of the other rows of its group, (B,).

    A baseline that does not depend on the row's own draw, and so leaves the
    expected gradient as it is. Source: Kool et al. 2019.
    Raises ValueError unless groups have at least 2 rows and divide B.
    """
    if group_size < 2 or values.shape[0] % group_size:
        raise ValueError(
            f"group_size={group_size} with {values.shape[0]} rows: give at least 2, "
            "and a divisor of the number of rows"
        )
    groups = values.view(-1, group_size)
    others = (groups.sum(-1, keepdim=True) - groups) / (group_size - 1)
    # Rounding must not turn equal values into a signal, which Adam would magnify.
    equal = groups.amax(-1, keepdim=True) == groups.amin(-1, keepdim=True)
    return torch.where(equal, groups, others).reshape(-1)


def leave_one_out_advantages(
    rewards: Tensor, group_size: int, completion_mask: Tensor
) -> Tensor:
    """Outcome minus the mean outcome of the group's others, on every token (B, T).

    rewards (B,), completion_mask (B, T); 0 where masked.
    Source: Kool et al. 2019; Ahmadian et al. 2024 (RLOO).
    """
    advantages = rewards - leave_one_out(rewards, group_size)
    return advantages[:, None] * completion_mask.to(rewards.dtype)
