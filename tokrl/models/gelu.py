"""GELU as GPT-2 has it, from one exponential: in half of torch's time on one thread."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# x times the sigmoid of SLOPE x + CUBE x^3: Hendrycks and Gimpel 2016, section 2.
SLOPE = 2 * math.sqrt(2 / math.pi)
CUBE = 0.044715 * SLOPE
# Of fewer numbers torch's own is faster, as it is one call; more where it is for a
# gradient too.
ENOUGH, ENOUGH_FOR_GRADIENT = 4_096, 16_384


def gelu(x: Tensor) -> Tensor:
    """`F.gelu(x, approximate="tanh")`, of any shape; equal up to rounding.

    Its 0.5 (1 + tanh u) is the sigmoid of 2u. torch's tanh costs three times what its
    exp does, and in the gradient again; here the sigmoid is kept for that. Small
    tensors, half precision and other devices than the CPU are left to torch, which
    raises NotImplementedError for whole numbers. Gradients flow, second ones too.
    """
    for_gradient = torch.is_grad_enabled()
    enough = ENOUGH_FOR_GRADIENT if for_gradient else ENOUGH
    ours = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    if not ours or x.numel() < enough:
        return F.gelu(x, approximate="tanh")
    if for_gradient:
        return _Gelu.apply(x)[0]
    return _slope(x, CUBE).mul_(x).sigmoid_().mul_(x)


def _slope(x: Tensor, cube: float) -> Tensor:
    """SLOPE + cube x^2."""
    return torch.addcmul(torch.full((), SLOPE, dtype=x.dtype), x, x, value=cube)


class _Gelu(torch.autograd.Function):
    """x s(x) and its sigmoid s(x), which is for the gradient only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        share = _slope(x, CUBE).mul_(x).sigmoid_()
        return x * share, share

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]
    ) -> None:
        (x,), (_, share) = inputs, output
        ctx.mark_non_differentiable(share)
        ctx.save_for_backward(x, share)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _) -> Tensor:
        x, share = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative it must depend on x
            share = torch.sigmoid(x * _slope(x, CUBE))
            return grad * (share + share * (1 - share) * x * _slope(x, 3 * CUBE))
        slope = torch.ops.aten.sigmoid_backward(x, share)  # x s (1 - s)
        return slope.mul_(_slope(x, 3 * CUBE)).add_(share).mul_(grad)
