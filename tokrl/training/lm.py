"""Imitation: fitting a language model to text by cross-entropy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokrl.masking import pad
from tokrl.runs import History, progress


@dataclass(frozen=True)
class FitConfig:
    """How a language model is fitted.

    steps          updates
    batch_size     texts in each update
    learning_rate  the highest, reached after `warmup` of the steps, then falling
                   along a cosine to a tenth of it
    warmup         share of the steps in which the rate rises
    weight_decay   AdamW's
    clip_grad      largest norm of the gradient
    eval_every     steps between evaluations on held-out text; 0 for none
    """

    steps: int = 500
    batch_size: int = 32
    learning_rate: float = 3e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip_grad: float = 1.0
    eval_every: int = 50

    def __post_init__(self):
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: give a whole number of at least 1")
        for name in ("learning_rate", "clip_grad"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"{name}={value!r}: give a number above 0")
        if not 0 <= self.warmup < 1 or self.weight_decay < 0 or self.eval_every < 0:
            raise ValueError(
                f"warmup={self.warmup!r}, weight_decay={self.weight_decay!r}, "
                f"eval_every={self.eval_every!r}: warmup is at least 0 and below 1, "
                "the others at least 0"
            )

    def rate(self, step: int) -> float:
        """The learning rate of update `step`, counted from 0."""
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        done = (step - rising) / max(1, self.steps - rising)
        return self.learning_rate * (0.55 + 0.45 * math.cos(math.pi * done))


def cross_entropy(model: nn.Module, texts: Sequence[Sequence[int]]) -> Tensor:
    """Mean negative log-prob, nats per token, of all tokens but each text's first.

    texts: id lists that start with `<bos>` and end with `<eos>`.
    """
    ids, mask = pad(texts, side="right")
    logits, _ = model(ids[:, :-1])
    losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    scored = mask[:, 1:]
    return (losses * scored).sum() / scored.sum()


@torch.no_grad()
def evaluate(
    model: nn.Module, texts: Sequence[Sequence[int]], batch_size: int = 256
) -> float:
    """Cross-entropy of a model on texts, nats per token."""
    total = count = 0.0
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        tokens = sum(len(text) - 1 for text in batch)
        total += float(cross_entropy(model, batch)) * tokens
        count += tokens
    return total / count


def fit(
    model: nn.Module,
    ids: Sequence[Sequence[int]],
    config: FitConfig | None = None,
    held_out: Sequence[Sequence[int]] | None = None,
    generator: torch.Generator | None = None,
) -> History:
    """Fit a model to texts: batch, cross-entropy, gradient, step, again.

    ids        texts as id lists, `<bos>` first and `<eos>` last; each pass takes
               them in a new random order
    held_out   texts to evaluate on, never trained on
    generator  decides the order
    Returns a History with `loss` (nats per token, each step), `held_out` (every
    `eval_every` steps and at the end) and `tokens` (read so far).
    Raises ValueError for an empty corpus or a text too short to predict anything.
    """
    config = config or FitConfig()
    _check_texts(ids, "ids")
    if held_out is not None:
        _check_texts(held_out, "held_out")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.99),
        weight_decay=config.weight_decay, fused=True,
    )  # fmt: skip
    history = History()
    queue: list[int] = []
    tokens = 0
    for step in progress(range(config.steps), desc="fit"):
        while len(queue) < config.batch_size:
            queue.extend(torch.randperm(len(ids), generator=generator).tolist())
        batch = [ids[i] for i in queue[: config.batch_size]]
        del queue[: config.batch_size]
        for group in optimizer.param_groups:
            group["lr"] = config.rate(step)
        loss = cross_entropy(model, batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of step {step} is {loss.item()}")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
        optimizer.step()
        tokens += sum(len(text) - 1 for text in batch)
        metrics = {"loss": loss.detach(), "tokens": tokens}
        done = step + 1
        due = config.eval_every and (
            done % config.eval_every == 0 or done == config.steps
        )
        if held_out is not None and due:
            metrics["held_out"] = evaluate(model, held_out)
        history.add(done, **metrics)
    return history


def _check_texts(texts: Sequence[Sequence[int]], name: str) -> None:
    if not len(texts):
        raise ValueError(f"{name} holds no texts: give at least one")
    for i, text in enumerate(texts):
        if len(text) < 2:
            raise ValueError(
                f"{name}[{i}] has {len(text)} tokens: a text needs at least 2, "
                "<bos> and one to predict"
            )
