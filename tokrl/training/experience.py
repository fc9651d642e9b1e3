"""From sampled completions to what an update needs of each token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from tokrl import processes
from tokrl.advantages import (
    compute_gae,
    group_advantages,
    leave_one_out,
    leave_one_out_advantages,
    returns_to_go,
)
from tokrl.batches import Rollout
from tokrl.losses import kl_estimate, select_by_entropy, token_weights
from tokrl.masking import whiten, zero_masked
from tokrl.models import ValueModel
from tokrl.rewards import Reward
from tokrl.rollout import collect
from tokrl.scoring import (
    token_logprobs,
    token_logprobs_and_entropy,
    token_values,
)
from tokrl.tokenizers import Tokenizer
from tokrl.training.policy_config import PolicyConfig


@dataclass(frozen=True)
class Experience:
    """A rollout and what was made of it, a row for each completion; all (B, T).

    advantages    0 where masked
    policy_mask   1 on the tokens that the policy learns from
    ref_logprobs  under the reference; None if none is needed
    old_values    of the critic when the tokens were sampled; None without critic
    returns       what the critic should have said; None without critic
    """

    rollout: Rollout
    advantages: Tensor
    policy_mask: Tensor
    ref_logprobs: Tensor | None = None
    old_values: Tensor | None = None
    returns: Tensor | None = None

    def explained(self) -> float:
        """Share of the variance of the returns that the critic foresaw; at most 1."""
        counted = self.rollout.completion_mask.bool()
        returns, values = self.returns[counted], self.old_values[counted]
        missed = (returns - values).var(correction=0)
        return float(1 - missed / returns.var(correction=0).clamp(min=1e-12))

    def take(self, rows: Tensor) -> "Experience":
        """These rows (a long tensor of row numbers)."""
        own = {f.name: getattr(self, f.name) for f in fields(self)[1:]}
        kept = {name: None if t is None else t[rows] for name, t in own.items()}
        return Experience(self.rollout.take(rows), **kept)


def gather(
    policy: nn.Module,
    prompts: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    reward: Reward,
    config: PolicyConfig,
    tokenizer: Tokenizer,
    generator: torch.Generator | None,
) -> Rollout:
    """A rollout from prompts drawn at random, each as likely at each draw.

    Where `config.resample` asks for it, groups without a signal, whose completions
    all got the same reward, make room for groups from new prompts.
    """

    def draw(count: int) -> Rollout:
        drawn = torch.randint(len(prompts), (count,), generator=generator).tolist()
        return collect(
            policy, [prompts[i] for i in drawn], reward, tokenizer,
            config.max_new_tokens, config.group_size, config.temperature, generator,
            {name: [column[i] for i in drawn] for name, column in columns.items()},
        )  # fmt: skip

    count = config.prompts_per_step // processes.count()
    rollout = draw(count)
    for _ in range(config.resample):
        signal = ~groups_without_signal(rollout)
        if signal.all():
            break
        rows = signal.repeat_interleave(config.group_size).nonzero()[:, 0]
        kept = [rollout.take(rows, config.group_size)] if len(rows) else []
        rollout = Rollout.join([*kept, draw(int((~signal).sum()))])
    return rollout


def groups_without_signal(rollout: Rollout) -> Tensor:
    """Which of the P groups got one and the same reward for all completions, bool."""
    groups = rollout.rewards.view(-1, rollout.group_size)
    return groups.amax(-1) == groups.amin(-1)


def pay_kl(
    rollout: Rollout, reference: nn.Module, config: PolicyConfig
) -> tuple[Rollout, Tensor, Tensor]:
    """What the completions are worth to the reference, and what they pay for it.

    Returns the rollout, whose token rewards are lower by kl_coef d_t if the KL is
    paid in the reward; d_t = log(pi / pi_ref) of the sampled tokens, (B, T), nats, 0
    where masked: its sum over a row is an unbiased estimate of the sequence's KL; and
    the log-probs under the reference, (B, T).
    """
    mask = rollout.completion_mask
    with torch.no_grad():
        ref_logprobs = token_logprobs(reference, *rollout.tokens, config.temperature)
    drift = kl_estimate(zero_masked(rollout.old_logprobs, mask), ref_logprobs, "k1")
    if config.kl_in == "reward":
        token_rewards = rollout.token_rewards - config.kl_coef * drift
        rollout = replace(rollout, token_rewards=token_rewards)
    return rollout, drift, ref_logprobs


def token_advantages(rollout: Rollout, config: PolicyConfig) -> Tensor:
    """The advantage of each token without a critic, (B, T), 0 where masked."""
    mask, size = rollout.completion_mask, rollout.group_size
    if config.advantage == "rloo":
        return leave_one_out_advantages(rollout.rewards, size, mask)
    if config.advantage == "group":
        rewards, own = over_all_processes(rollout.rewards)
        columns = torch.ones_like(rewards)[:, None]
        found = group_advantages(rewards, size, columns, config.scale)
        return found[own] * mask.to(found.dtype)
    returns = returns_to_go(rollout.token_rewards, mask, config.gamma)
    if config.advantage == "returns":
        return returns
    baseline = leave_one_out(returns[:, 0], size)
    return (returns - baseline[:, None]) * mask


def over_all_processes(values: Tensor) -> tuple[Tensor, slice]:
    """Values (N,) of all processes one after the other, and where our own are."""
    parts = processes.from_all(values)
    start = sum(len(part) for part in parts[: processes.number()])
    return torch.cat(parts), slice(start, start + len(values))


def prepare(
    rollout: Rollout,
    policy: nn.Module,
    critic: ValueModel | None,
    ref_logprobs: Tensor | None,
    config: PolicyConfig,
) -> Experience:
    """Advantages, and what else the loss asks for; nothing here carries gradients."""
    mask, policy_mask = rollout.completion_mask, rollout.completion_mask
    values = returns = None
    if critic is not None:
        with torch.no_grad():
            values = token_values(critic, *rollout.tokens)
        advantages, returns = compute_gae(
            rollout.token_rewards, values, mask, config.gamma, config.gae_lambda
        )
    else:
        advantages = token_advantages(rollout, config)
    kept = mask.bool()
    if config.whiten:
        counted, own = over_all_processes(advantages[kept])
        whitened = whiten(counted, torch.ones_like(counted))[own]
        advantages = torch.zeros_like(advantages).masked_scatter(kept, whitened)
    if config.entropy_share < 1:
        with torch.no_grad():
            _, spread = token_logprobs_and_entropy(
                policy, *rollout.tokens, config.temperature
            )
        counted, own = over_all_processes(spread[kept])
        chosen = select_by_entropy(
            counted, torch.ones_like(counted), config.entropy_share
        )[own]
        policy_mask = torch.zeros_like(spread).masked_scatter(kept, chosen)
    used = ref_logprobs if config.kl_in == "loss" and config.kl_coef else None
    return Experience(rollout, advantages, policy_mask, used, values, returns)


def weights_over_all_processes(
    mask: Tensor, mode: str = "token_mean", max_length: int | None = None
) -> Tensor:
    """The weights (B, T) of `token_weights`, with the counts of all processes."""
    weights = token_weights(mask.to(torch.get_default_dtype()), mode, max_length)
    own = mask.sum() if mode == "token_mean" else torch.tensor(len(mask))
    everyone = own.clone()
    processes.all_sum(everyone)
    return weights * (own / everyone.clamp(min=1))
