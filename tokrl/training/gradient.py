"""From losses to a gradient that a step may be taken with."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tokrl.processes import all_sum
from tokrl.runs import first_not_finite


def clipped_gradient(
    losses: Iterable[Tensor], model: nn.Module, clip_grad: float, step: int
) -> tuple[Tensor, Tensor]:
    """Fill `.grad` of every parameter, scaled down to a norm of at most `clip_grad`.

    losses  scalars whose sum is the loss: those of the parts of a batch, each made
            when the one before it is done with, so that one part at a time is in
            memory. With several processes, the sum over all of them.
    step    for the error message
    Returns the sum of the losses and the norm before it was clipped. Gradients of
    earlier losses are dropped.
    Raises FloatingPointError, naming the step and the first tensor with a NaN or an
    infinity, if a loss or the gradient has one: no step should be taken then.
    """
    model.zero_grad()
    total = torch.zeros(())
    for loss in losses:
        if not torch.isfinite(loss):
            bad = first_not_finite(model.named_parameters())
            what = f"; the parameter {bad} is not finite" if bad else ""
            raise FloatingPointError(f"step {step}: the loss is {loss.item()}{what}")
        loss.backward()
        total = total + loss.detach()
    parameters = [p for p in model.parameters() if p.grad is not None]
    all_sum(total, *(p.grad for p in parameters))
    norm = nn.utils.get_total_norm([p.grad for p in parameters])
    if not torch.isfinite(norm):
        bad = first_not_finite((n, p.grad) for n, p in model.named_parameters())
        what = f"the gradient of {bad} is not finite" if bad else f"its norm is {norm}"
        raise FloatingPointError(
            f"step {step}: the loss is {total.item():.4g}, but {what}"
        )
    nn.utils.clip_grads_with_norm_(parameters, clip_grad, norm)
    return total, norm
