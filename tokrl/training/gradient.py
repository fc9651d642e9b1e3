"""From a loss to a gradient that a step may be taken with."""

import torch
from torch import Tensor, nn

from tokrl.runs import first_not_finite


def clipped_gradient(
    loss: Tensor, model: nn.Module, clip_grad: float, step: int
) -> Tensor:
    """Fill `.grad` of every parameter, scaled down to a norm of at most `clip_grad`.

    loss  a scalar; gradients of earlier losses are dropped
    step  for the error message
    Returns the norm before it was clipped.
    Raises FloatingPointError, naming the step and the first tensor with a NaN or an
    infinity, if the loss or the gradient has one: no step should be taken then.
    """
    if not torch.isfinite(loss):
        bad = first_not_finite(model.named_parameters())
        what = f"; the parameter {bad} is not finite" if bad else ""
        raise FloatingPointError(f"step {step}: the loss is {loss.item()}{what}")
    model.zero_grad()
    loss.backward()
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters])
    if not torch.isfinite(norm):
        bad = first_not_finite((n, p.grad) for n, p in model.named_parameters())
        what = f"the gradient of {bad} is not finite" if bad else f"its norm is {norm}"
        raise FloatingPointError(
            f"step {step}: the loss is {loss.item():.4g}, but {what}"
        )
    nn.utils.clip_grads_with_norm_(parameters, clip_grad, norm)
    return norm
