"""Imitation: fitting a language model to text by cross-entropy."""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from numbers import Real

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokrl.masking import pad
from tokrl.runs import History, Run, interrupt_between_steps, progress
from tokrl.training.gradient import clipped_gradient
from tokrl.training.optimizers import OPTIMIZERS, make_optimizer

# To begin a pass of a small model costs about as much as to read so many tokens.
PASS = 96


@dataclass(frozen=True)
class FitConfig:
    """How a language model is fitted.

    steps             updates
    batch_size        texts in each update
    bucket            batches drawn together and then cut by length, so that texts of
                      one batch need little padding; 1 for none
    optimizer         adamw or muon, see `make_optimizer`
    learning_rate     the highest, reached after `warmup` of the steps, then falling
                      along a cosine to a tenth of it
    warmup            share of the steps in which the rate rises
    weight_decay      pull of every weight towards 0, times the rate
    clip_grad         largest norm of the gradient
    label_smoothing   share of each target spread over all tokens, see `cross_entropy`
    eval_every        steps between evaluations on held-out text; 0 for none
    checkpoint_every  steps between checkpoints; 0 for one at the end
    """

    steps: int = 500
    batch_size: int = 32
    bucket: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 3e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip_grad: float = 1.0
    label_smoothing: float = 0.0
    eval_every: int = 50
    checkpoint_every: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size", "bucket"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: give a whole number of at least 1")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer={self.optimizer!r}: give one of {', '.join(OPTIMIZERS)}"
            )
        for name in ("learning_rate", "clip_grad"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not value > 0:
                raise ValueError(f"{name}={value!r}: give a number above 0")
        for name in ("warmup", "label_smoothing"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= value < 1:
                raise ValueError(f"{name}={value!r}: give a number from 0 to below 1")
        for name in ("eval_every", "checkpoint_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{name}={value!r}: give a whole number of at least 0")
        decay = self.weight_decay
        if not isinstance(decay, Real) or not decay >= 0:
            raise ValueError(f"weight_decay={decay!r}: give a number of at least 0")

    def rate(self, step: int) -> float:
        """The learning rate of update `step`, counted from 0."""
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        done = (step - rising) / max(1, self.steps - rising)
        return self.learning_rate * (0.55 + 0.45 * math.cos(math.pi * done))


def cross_entropy(
    model: nn.Module, texts: Sequence[Sequence[int]], label_smoothing: float = 0.0
) -> Tensor:
    """Mean negative log-prob, nats per token, of all tokens but each text's first.

    texts            id lists that start with `<bos>` and end with `<eos>`
    label_smoothing  share of a target that all V tokens get alike, so that the model
                     is never taught certainty: Szegedy et al. 2016, section 7
    Raises ValueError if there is no token to predict, or a text without any.
    """
    total = sum(len(text) - 1 for text in texts)
    if total < 1 or not all(len(text) for text in texts):
        raise ValueError(
            f"texts of {[len(text) for text in texts[:9]]} tokens: give at least one "
            "that goes on after its first token, and none that is empty"
        )
    parts = _alike(texts) if getattr(model, "reads_at_once", False) else [texts]
    return sum(_surprise(model, part, label_smoothing) for part in parts) / total


def _surprise(
    model: nn.Module, texts: Sequence[Sequence[int]], label_smoothing: float
) -> Tensor:
    """Negative log-prob, nats, of all tokens of all texts; see `cross_entropy`."""
    ids, mask = pad(texts, side="right")
    logits, _ = model(ids[:, :-1])
    losses = F.cross_entropy(
        logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none",
        label_smoothing=label_smoothing,
    )  # fmt: skip
    return (losses * mask[:, 1:].flatten()).sum()


def _alike(texts: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Texts of like length together, so that little of what is read is padding."""
    part: list[Sequence[int]] = []
    padding = 0
    for text in sorted(texts, key=len, reverse=True):
        padding += len(part[0]) - len(text) if part else 0
        if padding > PASS:
            yield part
            part, padding = [], 0
        part.append(text)
    yield part


Loss = Callable[[nn.Module, Sequence[Sequence[int]]], Tensor]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    texts: Sequence[Sequence[int]],
    batch_size: int = 256,
    loss: Loss = cross_entropy,
) -> float:
    """Cross-entropy of a model on texts, nats per token; or another mean `loss`.

    Raises ValueError for no texts.
    """
    if not len(texts):
        raise ValueError("no texts to evaluate on: give at least one list of ids")
    total = count = 0.0
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        tokens = sum(len(text) - 1 for text in batch)
        total += float(loss(model, batch)) * tokens
        count += tokens
    return total / count


def fit(
    model: nn.Module,
    ids: Sequence[Sequence[int]],
    config: FitConfig | None = None,
    held_out: Sequence[Sequence[int]] | None = None,
    generator: torch.Generator | None = None,
    folder: str | os.PathLike | None = None,
    resume: bool = False,
    loss: Loss | None = None,
) -> History:
    """Fit a model to texts: batch, cross-entropy, gradient, step, again.

    ids        texts as id lists, `<bos>` first and `<eos>` last; each pass takes
               them in a new random order
    held_out   texts to evaluate on, never trained on
    generator  decides the order
    folder     where config.json, log.jsonl and checkpoint.safetensors are kept, see
               `tokrl.runs.Run`; None keeps nothing. Ctrl-C then waits for the end of
               a step and saves.
    resume     go on from the folder's checkpoint, if there is one, as if the run had
               never stopped: to the last bit
    loss       mean loss of a batch, a scalar; None: `cross_entropy` with the
               configuration's `label_smoothing`
    Returns a History with `loss` (nats per token, each step), `held_out` (every
    `eval_every` steps and at the end) and `tokens` (read so far).
    Raises ValueError for texts that the model cannot read or learn from, or a folder
    that does not fit; FloatingPointError where the loss or a gradient is not finite.
    """
    config = config or FitConfig()

    def smoothed(model: nn.Module, texts: Sequence[Sequence[int]]) -> Tensor:
        return cross_entropy(model, texts, config.label_smoothing)

    batch_loss, held_out_loss = loss or smoothed, loss or cross_entropy
    _check_texts(model, ids, "ids")
    if held_out is not None:
        _check_texts(model, held_out, "held_out")
    optimizer = make_optimizer(
        config.optimizer, model, config.learning_rate, config.weight_decay
    )
    data = {} if folder is None else _describe(model, ids, held_out)
    run = Run(folder, asdict(config), data, resume)
    saved = run.restore(model, optimizer, generator)
    queue: list[int] = saved.get("queue", [])
    tokens, start = saved.get("tokens", 0), saved.get("step", 0)
    careful = (
        nullcontext(lambda: False) if folder is None else interrupt_between_steps()
    )
    with careful as interrupted:
        for step in progress(range(start, config.steps), desc="fit"):
            while len(queue) < config.batch_size:
                queue.extend(_order(ids, config, generator))
            batch = [ids[i] for i in queue[: config.batch_size]]
            del queue[: config.batch_size]
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step)
            done = step + 1
            losses = [batch_loss(model, batch)]
            current, _ = clipped_gradient(losses, model, config.clip_grad, done)
            optimizer.step()
            tokens += sum(len(text) - 1 for text in batch)
            metrics = {"loss": current, "tokens": tokens}
            last = done == config.steps
            if held_out is not None and _due(done, config.eval_every, last):
                metrics["held_out"] = evaluate(model, held_out, loss=held_out_loss)
            run.history.add(done, **metrics)
            stop = interrupted()
            if stop or last or _due(done, config.checkpoint_every):
                run.save(
                    model, optimizer, generator, step=done, tokens=tokens, queue=queue
                )
            if stop:
                raise KeyboardInterrupt
    return run.history


def _order(
    ids: Sequence[Sequence[int]], config: FitConfig, generator: torch.Generator | None
) -> list[int]:
    """A random order of all texts, those of a bucket sorted into batches by length."""
    order = torch.randperm(len(ids), generator=generator).tolist()
    if config.bucket == 1:
        return order
    arranged, size = [], config.batch_size
    for start in range(0, len(order), size * config.bucket):
        part = order[start : start + size * config.bucket]
        part.sort(key=lambda i: len(ids[i]))
        batches = [part[i : i + size] for i in range(0, len(part), size)]
        for k in torch.randperm(len(batches), generator=generator).tolist():
            arranged += batches[k]
    return arranged


def _due(done: int, every: int, last: bool = False) -> bool:
    """Every so many steps, and after the last one; never if `every` is 0."""
    return bool(every) and (last or done % every == 0)


def _check_texts(model: nn.Module, texts: Sequence[Sequence[int]], name: str) -> None:
    """ValueError that names the first text that the model cannot learn from."""
    if not len(texts):
        raise ValueError(f"{name} holds no texts: give at least one")
    vocab_size = getattr(model, "vocab_size", None)
    longest = getattr(model, "max_length", None)
    for i, text in enumerate(texts):
        if len(text) < 2:
            raise ValueError(
                f"{name}[{i}] has {len(text)} tokens: a text needs at least 2, "
                "<bos> and one to predict"
            )
        if longest is not None and len(text) - 1 > longest:
            raise ValueError(
                f"{name}[{i}] has {len(text)} tokens; the model reads at most "
                f"{longest}, and one more to predict: cut the text into shorter ones, "
                "or build the model with a larger max_length"
            )
        row = np.asarray(text)
        if row.ndim != 1 or row.dtype.kind not in "iu":
            raise ValueError(
                f"{name}[{i}] is not a list of ids: encode the text with the tokenizer"
            )
        wrong = (row < 0) if vocab_size is None else (row < 0) | (row >= vocab_size)
        if wrong.any():
            position = int(wrong.argmax())
            known = "" if vocab_size is None else f" and at most {vocab_size - 1}"
            raise ValueError(
                f"{name}[{i}][{position}] is the id {row[position]}; the model has "
                f"ids of at least 0{known}: encode with the tokenizer it was built for"
            )


def _describe(
    model: nn.Module,
    ids: Sequence[Sequence[int]],
    held_out: Sequence[Sequence[int]] | None,
) -> dict[str, int | str | None]:
    """What must be the same when a run goes on."""
    return {
        "vocab_size": getattr(model, "vocab_size", None),
        "ids": _fingerprint(ids),
        "held_out": None if held_out is None else _fingerprint(held_out),
    }


def _fingerprint(texts: Sequence[Sequence[int]]) -> str:
    """A corpus in a line: how many texts and tokens, and a hash over all ids."""
    total, tokens = hashlib.sha256(), 0
    for text in texts:
        row = np.asarray(text, dtype=np.int64)
        tokens += len(row)
        total.update(len(row).to_bytes(8, "little") + row.tobytes())
    return f"{len(texts)} texts, {tokens} tokens, sha256 {total.hexdigest()[:16]}"
