"""Reinforcement: collect, reward, advantage, a few steps; and again."""

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from tokrl import processes
from tokrl.losses import kl_estimate, policy_loss, value_loss
from tokrl.masking import masked_mean, masked_sum
from tokrl.models import ValueModel, with_value_head
from tokrl.rewards import Reward
from tokrl.rollout import check_prompts
from tokrl.runs import History, Run, fingerprint, interrupt_between_steps, progress
from tokrl.scoring import token_logprobs_and_entropy, token_values
from tokrl.tokenizers import Tokenizer
from tokrl.training.experience import (
    Experience,
    gather,
    groups_without_signal,
    pay_kl,
    prepare,
    weights_over_all_processes,
)
from tokrl.training.gradient import clipped_gradient
from tokrl.training.policy_config import PolicyConfig


def train_policy(
    model: nn.Module,
    prompts: Sequence[str],
    reward: Reward,
    config: PolicyConfig,
    tokenizer: Tokenizer,
    generator: torch.Generator | None = None,
    reference: nn.Module | None = None,
    critic: ValueModel | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    folder: str | None = None,
    resume: bool = False,
) -> History:
    """Improve a policy by its own samples, weighted by their advantage.

    prompts    texts to start from; [""] samples whole texts
    reward     a sequence or token reward, see `tokrl.rewards`; the gamma of a
               `PotentialShaping` must be that of the configuration
    generator  source of all draws
    reference  the policy to which the KL is measured, and paid where kl_coef is above
               0; None takes the model as it is when training starts, if it is paid
    critic     for the advantage gae: a model with a value head, trained along; None
               gives the model itself one if it has a head, and else a copy of it
    columns    what else the reward needs of each prompt, under its name
    folder     where config.json, log.jsonl and checkpoint.safetensors are kept, see
               `tokrl.runs.Run`; None keeps nothing. Ctrl-C then waits for the end of
               a step and saves.
    resume     go on from the folder's checkpoint, if there is one, as if the run had
               never stopped; give the same untrained model, prompts, columns, reward
               and generator. Model, prompts and settings are compared
    Returns a History with, for each step, means over its completions before the
    update: `reward/mean` (per completion, what the reward gave), `reward/std`,
    `reward/frac_zero_std` (groups without signal), what else the reward measured in
    its last call (the parts of a `CombinedReward`), `policy/length` (tokens that
    count), and where there is a reference `policy/ref_kl` (nats per completion); and
    means over its updates: `policy/loss`, `policy/entropy` (nats per token),
    `policy/grad_norm`, `policy/approx_kl` (nats per token), `policy/ratio`,
    `policy/clip_frac`, with a critic `value/loss`, `value/clip_frac` and
    `value/explained` (share of the variance of the returns); and seconds:
    `time/collect`, `time/update`.
    With several processes (`tokrl.processes.join`) each draws its part of the prompts,
    and the update is that of one process with all of them; process 0 keeps the files.
    Raises ValueError for no prompts, a critic without a value head, a reward that
    returns nonsense (named), or a folder that does not fit; FloatingPointError where a
    loss or a gradient is not finite, which the weights and the last checkpoint do not
    take in.
    """
    columns = dict(columns or {})
    _check(prompts, columns, config, critic)
    if config.advantage != "gae":
        critic = None
    elif critic is None:
        own = isinstance(model, ValueModel)
        critic = model if own else with_value_head(copy.deepcopy(model))
    if config.kl_coef and reference is None:
        reference = copy.deepcopy(model)
    learner = Learner(model, critic, config)
    first = processes.number() == 0
    data = {
        "prompts": fingerprint(list(prompts)), "model": fingerprint(model.state_dict()),
        "processes": processes.count(),
    }  # fmt: skip
    run = Run(folder if first else None, asdict(config), data, resume and first)
    start = _restore(run, learner, generator)
    careful = (
        nullcontext(lambda: False) if folder is None else interrupt_between_steps()
    )
    with careful as interrupted:
        bar = progress(range(start, config.steps), desc="train_policy")
        for done in bar:
            step = done + 1
            began = time.perf_counter()
            rollout = gather(
                model, prompts, columns, reward, config, tokenizer, generator
            )
            metrics = {
                "reward/mean": rollout.rewards.mean(),
                "reward/std": rollout.rewards.std(correction=0),
                "reward/frac_zero_std": groups_without_signal(rollout).double().mean(),
                "policy/length": rollout.lengths.double().mean(),
                **getattr(reward, "metrics", {}),
            }
            ref_logprobs = None
            if reference is not None:
                rollout, drift, ref_logprobs = pay_kl(rollout, reference, config)
                metrics["policy/ref_kl"] = drift.sum(-1).mean()
            experience = prepare(rollout, model, critic, ref_logprobs, config)
            if critic is not None:
                metrics["value/explained"] = experience.explained()
            collected = time.perf_counter()
            metrics.update(learner.learn(experience, generator, step))
            metrics = _mean_over_processes(metrics)
            metrics["time/collect"] = collected - began
            metrics["time/update"] = time.perf_counter() - collected
            run.history.add(step, **metrics)
            shown = {"reward": f"{float(metrics['reward/mean']):.3f}"}
            if reference is not None:
                shown["KL"] = f"{float(metrics['policy/ref_kl']):.3f}"
            bar.set_postfix(shown)
            stop = any(processes.from_all(interrupted()))
            every = config.checkpoint_every
            if stop or step == config.steps or (every and step % every == 0):
                _save(run, learner, generator, step)
            if stop:
                raise KeyboardInterrupt
    return run.history


class Learner(nn.Module):
    """A policy, its critic if it has one, and the optimiser of both."""

    def __init__(
        self, policy: nn.Module, critic: ValueModel | None, config: PolicyConfig
    ):
        super().__init__()
        self.policy = policy
        self.critic = critic
        self.config = config
        self.optimizer = torch.optim.AdamW(
            self.parameters(), lr=config.learning_rate, betas=(0.9, 0.95),
            weight_decay=0.0, fused=True,
        )  # fmt: skip

    def learn(
        self, experience: Experience, generator: torch.Generator | None, step: int
    ) -> dict[str, float]:
        """All updates of one rollout; returns the means of their metrics.

        step  for error messages
        """
        config, rows = self.config, len(experience.rollout)
        found: list[dict[str, float]] = []
        for _ in range(config.epochs):
            parts = [torch.arange(rows)]
            if config.minibatches > 1:
                order = torch.randperm(rows, generator=generator)
                parts = order.tensor_split(config.minibatches)
            found += [self.update(experience.take(part), step) for part in parts]
        names = found[0]
        return {name: sum(m[name] for m in found) / len(found) for name in names}

    def update(self, experience: Experience, step: int = 0) -> dict[str, float]:
        """One step of the optimiser on one minibatch; returns its metrics.

        If nothing in it pulls at the weights they stay as they are, to the last bit:
        Adam would go on with the momentum of earlier steps.
        """
        metrics: dict[str, float] = {}
        losses = self._losses(experience, metrics)
        loss, norm = clipped_gradient(losses, self, self.config.clip_grad, step)
        if norm > 0:
            self.optimizer.step()
        return {"policy/loss": float(loss), "policy/grad_norm": float(norm), **metrics}

    def _losses(
        self, experience: Experience, metrics: dict[str, float]
    ) -> Iterator[Tensor]:
        """The loss of each micro-batch; the weights are those of the whole."""
        config, rollout = self.config, experience.rollout
        mask = rollout.completion_mask
        weights = weights_over_all_processes(
            mask, config.aggregate, config.max_new_tokens
        )
        value_weights = weights_over_all_processes(mask)
        rows = self._rows(experience)
        size = config.micro_batch or len(rollout)
        if size < len(rollout):  # like lengths together, so that little is padding
            rows = rows[rollout.lengths[rows].argsort(descending=True, stable=True)]
        counted = mask[rows].sum().clamp(min=1)
        for part in rows.split(size):
            piece = experience.take(part)
            share = float(piece.rollout.completion_mask.sum() / counted)
            loss, found = self._loss(piece, weights[part], value_weights[part])
            for name, value in found.items():
                metrics[name] = metrics.get(name, 0.0) + share * value
            yield loss

    def _rows(self, experience: Experience) -> Tensor:
        """The numbers of the rows that the loss is made of."""
        rows = torch.arange(len(experience.rollout))
        more = self.config.entropy_coef or experience.ref_logprobs is not None
        if not self.config.skip_idle or more or self.critic is not None:
            return rows
        pulling = rows[(experience.advantages != 0).any(-1).to(rows.device)]
        return pulling if len(pulling) else rows[:1]

    def _loss(
        self, piece: Experience, weights: Tensor, value_weights: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of some rows, each token with its weight, and metrics.

        value_weights  those of the critic: a mean over tokens
        """
        config, rollout = self.config, piece.rollout
        mask = rollout.completion_mask
        logprobs, spread = token_logprobs_and_entropy(
            self.policy, *rollout.tokens, config.temperature, config.entropy_coef > 0
        )
        loss, found = policy_loss(
            logprobs, rollout.old_logprobs, piece.advantages, mask,
            config.clip_low, config.clip_high, config.kind,
            weights=weights * piece.policy_mask,
        )  # fmt: skip
        metrics = {f"policy/{name}": value for name, value in found.items()}
        metrics["policy/entropy"] = float(masked_mean(spread.detach(), mask))
        if config.entropy_coef:
            loss = loss - config.entropy_coef * masked_sum(spread * weights, mask)
        if piece.ref_logprobs is not None:
            drift = kl_estimate(logprobs, piece.ref_logprobs, config.kl_kind)
            loss = loss + config.kl_coef * masked_sum(drift * weights, mask)
        if self.critic is not None:
            values = token_values(self.critic, *rollout.tokens)
            error, found = value_loss(
                values, piece.old_values, piece.returns, mask, config.value_clip,
                weights=value_weights,
            )  # fmt: skip
            loss = loss + config.value_coef * error
            metrics["value/loss"] = float(error.detach() / value_weights.sum())
            metrics["value/clip_frac"] = found["clip_frac"]
        return loss, metrics


def _check(
    prompts: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    config: PolicyConfig,
    critic: Any,
) -> None:
    check_prompts(prompts, columns)
    if critic is not None and not isinstance(critic, ValueModel):
        raise ValueError(
            f"critic is a {type(critic).__name__}: give a model with a value head, "
            "`tokrl.models.with_value_head(model)`, or None"
        )
    if config.prompts_per_step % processes.count():
        raise ValueError(
            f"prompts_per_step={config.prompts_per_step} with {processes.count()} "
            "processes: give a multiple of their number"
        )


def _mean_over_processes(metrics: Mapping[str, float]) -> dict[str, float]:
    """Each metric's mean over the processes; the loss is a sum over them already."""
    every = processes.from_all({name: float(v) for name, v in metrics.items()})
    return {name: sum(m[name] for m in every) / len(every) for name in metrics}


def _save(
    run: Run, learner: Learner, generator: torch.Generator | None, step: int
) -> None:
    """A checkpoint by process 0, with where the draws of all of them stand."""
    source = generator or torch.default_generator
    draws = processes.from_all(source.get_state())
    run.save(learner, learner.optimizer, generator, step=step, draws=draws)


def _restore(run: Run, learner: Learner, generator: torch.Generator | None) -> int:
    """Take up what process 0 has read; returns the steps already done.

    In a new run all processes start with the weights of process 0, and each draws
    from a seed of its own.
    """
    saved = run.restore(learner, learner.optimizer, generator)
    if processes.count() == 1:
        return saved.get("step", 0)
    state = (learner.state_dict(), learner.optimizer.state_dict(), saved)
    weights, optimizer, saved = processes.from_first(state)
    learner.load_state_dict(weights)
    learner.optimizer.load_state_dict(optimizer)
    source = generator or torch.default_generator
    if saved:
        source.set_state(saved["draws"][processes.number()])
    elif processes.number():
        source.manual_seed(source.initial_seed() + processes.number())
    return saved.get("step", 0)
