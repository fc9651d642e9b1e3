"""Linear maps by the matrix library that is faster for them: oneDNN, or torch's own.

On AMD processors oneDNN takes about half the time of MKL, which torch multiplies
float32 matrices with; elsewhere they are alike. The operator is a private one of
torch: without it everything here is `F.linear`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Below so many multiplications the call itself costs more than they do.
ENOUGH = 1_500_000


def _find_onednn() -> Any:
    """The operator, if this torch has it and it does what we know of it."""
    one = torch.ones(1, 1, dtype=torch.float32)
    try:
        product = torch.ops.mkldnn._linear_pointwise(one, one, one[0], "none", [], "")
    except (AttributeError, RuntimeError):  # not there, not built in, or changed
        return None
    same = torch.equal(product, 2 * one)
    return torch.ops.mkldnn._linear_pointwise if same else None


ONEDNN = _find_onednn()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, as `F.linear`: x (..., K), weight (N, K), bias (N,) or None.

    Large products of float32 on the CPU go through oneDNN: the gradient is there, a
    second derivative is not. In float64 it is `F.linear` itself.
    """
    fits = x.dtype is weight.dtype is torch.float32 and x.device.type == "cpu"
    enough = x.numel() * weight.shape[0] >= ENOUGH
    if not (ONEDNN and fits and enough) or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _OneDNNLinear.apply(x, weight, bias)
    return _product(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear`, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + b: (..., K) to (..., N)."""
        return linear(x, self.weight, self.bias)


class _OneDNNLinear(torch.autograd.Function):
    """The product and its two gradients, each a product by oneDNN."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])  # (M, N)
        of_x = of_weight = of_bias = None
        if wants_x:
            of_x = _product(grad.contiguous(), weight.t().contiguous())
        if wants_weight:
            inputs = x.reshape(-1, x.shape[-1])  # (M, K)
            of_weight = _product(rows.t().contiguous(), inputs.t().contiguous())
        if wants_bias:
            of_bias = rows.sum(0)
        return of_x, of_weight, of_bias


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return ONEDNN(x, weight, bias, "none", [], "")
