"""Reinforcement: collect, reward, advantage, step."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tokrl.advantages import leave_one_out, returns_to_go
from tokrl.batches import Rollout
from tokrl.losses import kl_estimate, policy_loss
from tokrl.losses.aggregate import MODES
from tokrl.masking import masked_mean
from tokrl.rewards import Reward
from tokrl.rollout import collect
from tokrl.runs import History, progress
from tokrl.scoring import completion_logits, entropy, token_logprobs
from tokrl.tokenizers import Tokenizer

BASELINES = ("none", "leave_one_out")


@dataclass(frozen=True)
class PolicyConfig:
    """How a policy is trained.

    steps             updates
    prompts_per_step  prompts drawn for each update
    group_size        completions of each prompt
    max_new_tokens    longest completion
    learning_rate     AdamW's, constant
    gamma             discount of later rewards: 1 credits a token with all that
                      follows it, 0 with its own reward alone
    baseline          leave_one_out: subtract the mean return of the group's other
                      completions; none
    kl_coef           price of one nat of KL to the reference: each token's reward
                      is lowered by kl_coef log(pi / pi_ref), Ziegler et al. 2019
    temperature       at which completions are sampled and scored
    aggregate         how per-token losses add up: token_mean, sequence_mean,
                      constant (over max_new_tokens)
    clip_grad         largest norm of the gradient
    """

    steps: int = 100
    prompts_per_step: int = 1
    group_size: int = 64
    max_new_tokens: int = 64
    learning_rate: float = 5e-4
    gamma: float = 1.0
    baseline: str = "leave_one_out"
    kl_coef: float = 0.0
    temperature: float = 1.0
    aggregate: str = "constant"
    clip_grad: float = 1.0

    def __post_init__(self):
        for name in ("steps", "prompts_per_step", "group_size", "max_new_tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: give a whole number of at least 1")
        for name in ("learning_rate", "temperature", "clip_grad"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"{name}={value!r}: give a number above 0")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma={self.gamma!r}: give a number from 0 to 1")
        if not self.kl_coef >= 0:
            raise ValueError(f"kl_coef={self.kl_coef!r}: give a number of at least 0")
        for name, allowed in (("baseline", BASELINES), ("aggregate", MODES)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: give one of {', '.join(allowed)}")
        if self.baseline == "leave_one_out" and self.group_size < 2:
            raise ValueError(
                f"group_size={self.group_size}: the baseline 'leave_one_out' needs at "
                "least 2"
            )


def pay_kl(
    rollout: Rollout, reference: nn.Module, config: PolicyConfig
) -> tuple[Rollout, Tensor]:
    """Lower each token's reward by its share of the KL to the reference.

    Returns the rollout with its new token rewards, and d_t = log(pi / pi_ref) of the
    sampled tokens, (B, T), nats, 0 where masked: its sum over a row is an unbiased
    estimate of the sequence's KL.
    """
    mask = rollout.completion_mask
    with torch.no_grad():
        ref_logprobs = token_logprobs(
            reference, rollout.prompt_ids, rollout.prompt_mask,
            rollout.completion_ids, mask, config.temperature,
        )  # fmt: skip
    drift = kl_estimate(rollout.old_logprobs * mask, ref_logprobs, "k1")
    token_rewards = rollout.token_rewards - config.kl_coef * drift
    return replace(rollout, token_rewards=token_rewards), drift


def token_advantages(rollout: Rollout, config: PolicyConfig) -> Tensor:
    """Reward-to-go minus the baseline, (B, T), 0 where masked."""
    returns = returns_to_go(
        rollout.token_rewards, rollout.completion_mask, config.gamma
    )
    if config.baseline == "none":
        return returns
    baseline = leave_one_out(returns[:, 0], rollout.group_size)
    return (returns - baseline[:, None]) * rollout.completion_mask


def train_policy(
    model: nn.Module,
    prompts: Sequence[str],
    reward: Reward,
    config: PolicyConfig,
    tokenizer: Tokenizer,
    generator: torch.Generator | None = None,
    reference: nn.Module | None = None,
) -> History:
    """Improve a policy by REINFORCE: its own samples, weighted by their advantage.

    prompts    texts to start from; [""] samples whole texts
    reward     a sequence or token reward, see `tokrl.rewards`
    generator  source of all draws
    reference  the policy to which the KL is measured, and paid where kl_coef is above
               0; None takes the model as it is when training starts, if it is paid
    Returns a History with, for each step, means over its completions before the
    update: `reward/mean` (per completion), `reward/std`, `policy/loss`,
    `policy/entropy` (nats per token), `policy/length` (tokens that count),
    `policy/grad_norm` and, where there is a reference, `policy/ref_kl` (nats per
    completion). `reward/mean` is what the reward gave, before the price of the KL.
    Raises ValueError for no prompts or a reward that returns nonsense (named).
    """
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"prompts={prompts!r}: give a list of texts; [''] for none")
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=0.0,
        fused=True,
    )
    if config.kl_coef and reference is None:
        reference = copy.deepcopy(model)
    history = History()
    for step in progress(range(1, config.steps + 1), desc="train_policy"):
        drawn = torch.randint(
            len(prompts), (config.prompts_per_step,), generator=generator
        )
        rollout = collect(
            model, [prompts[i] for i in drawn.tolist()], reward, tokenizer,
            config.max_new_tokens, config.group_size, config.temperature, generator,
        )  # fmt: skip
        metrics = {"reward/mean": rollout.rewards.mean()}
        metrics["reward/std"] = rollout.rewards.std(correction=0)
        if reference is not None:
            rollout, drift = pay_kl(rollout, reference, config)
            metrics["policy/ref_kl"] = drift.sum(-1).mean()
        metrics.update(update(model, optimizer, rollout, config))
        history.add(step, **metrics)
    return history


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    config: PolicyConfig,
) -> dict[str, float]:
    """One gradient step on one rollout; returns its metrics.

    If every advantage is 0 there is nothing to learn and the weights stay as they
    are, to the last bit.
    """
    mask = rollout.completion_mask
    advantages = token_advantages(rollout, config)
    logits = (
        completion_logits(
            model, rollout.prompt_ids, rollout.prompt_mask, rollout.completion_ids, mask
        )
        / config.temperature
    )  # (B, T, V)
    logprobs = torch.log_softmax(logits, -1)
    logprobs = logprobs.gather(-1, rollout.completion_ids[..., None])[..., 0]
    loss, _ = policy_loss(
        logprobs, rollout.old_logprobs, advantages, mask,
        aggregate=config.aggregate, max_length=config.max_new_tokens,
    )  # fmt: skip
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the policy loss is {loss.item()}")
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
    if advantages.any():
        optimizer.step()
    return {
        "policy/loss": loss.detach(),
        "policy/entropy": masked_mean(entropy(logits.detach()), mask),
        "policy/length": rollout.lengths.double().mean(),
        "policy/grad_norm": norm,
    }
