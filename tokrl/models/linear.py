"""Linear maps by the matrix library that is faster for them: oneDNN, or torch's own.

On some AMD processors oneDNN takes about half the time of MKL, which torch multiplies
float32 matrices with; on others, and elsewhere, they are alike, and MKL starts sooner.
So both are timed once. The operator is a private one of torch: without it everything
here is `F.linear`.

oneDNN prepares itself for each new size of matrix, which takes longer than a small
product: it is worth it where the same sizes come again.
"""

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokrl.models.gelu import gelu

# Below so many multiplications the call itself costs more than they do.
ENOUGH = 1_000_000


def _find_onednn() -> Any:
    """The operator, if this torch has it and it does what we know of it."""
    a, b = torch.arange(8.0, dtype=torch.float32).view(2, 2, 2)
    try:
        product = torch.ops.mkldnn._linear_pointwise
        right = torch.equal(product(a, b, a[0], "none", [], ""), a @ b.T + a[0])
        # Transposed views as well, which the gradients are products of.
        right &= torch.equal(product(a.T, b.T, None, "none", [], ""), a.T @ b)
    except (AttributeError, RuntimeError):  # not there, not built in, or changed
        return None
    return product if right else None


ONEDNN = _find_onednn()


def _is_faster() -> bool:
    """Whether oneDNN takes at most four fifths of the time of MKL, here and now.

    They differ by a factor of two or hardly at all, so that the answer is the same each
    time on one machine: a run that goes on later goes on with the same roundings.
    """
    if ONEDNN is None:
        return False
    x, weight = torch.ones(640, 128, dtype=torch.float32).split((256, 384))
    sides = (
        lambda: ONEDNN(x, weight, None, "none", [], ""),
        lambda: F.linear(x, weight),
    )
    best = [float("inf")] * 2
    with torch.inference_mode():
        for _ in range(10):
            for i, product in enumerate(sides):
                start = time.perf_counter()
                product()
                best[i] = min(best[i], time.perf_counter() - start)
    return best[0] < 0.8 * best[1]


FASTER = _is_faster()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, as `F.linear`: x (..., K), weight (N, K), bias (N,) or None.

    Large products of float32 on the CPU go through oneDNN where that is faster: the
    gradient is there, a second derivative is not. In float64 it is `F.linear` itself.
    """
    if not (FASTER and _is_worth_it(x, weight)):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _OneDNNLinear.apply(x, weight, bias)
    return _product(x, weight, bias)


def may_take_onednn(dtype: torch.dtype) -> bool:
    """Whether `linear` goes through oneDNN here for large products of that type."""
    return FASTER and dtype is torch.float32


def _is_worth_it(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is there, and these are enough of what it can multiply."""
    return (
        ONEDNN is not None
        and x.numel() * weight.shape[0] >= ENOUGH
        and x.dtype is weight.dtype is torch.float32
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )


class Linear(nn.Linear):
    """`nn.Linear`, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + b: (..., K) to (..., N)."""
        return linear(x, self.weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """GELU(x W^T + b), by the tanh that GPT-2 approximates GELU with.

        oneDNN does both at once, where it is faster and no gradient is asked for.
        """
        if torch.is_grad_enabled() or not (FASTER and _is_worth_it(x, self.weight)):
            return gelu(self(x))
        return ONEDNN(x, self.weight, self.bias, "gelu", [], "tanh")


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
        inputs = x.reshape(-1, x.shape[-1])  # (M, K)
        of_x = of_weight = of_bias = None
        if wants_x:
            of_x = _product(grad, weight.t())
        if wants_weight and inputs.shape[1] < rows.shape[1]:
            of_weight = _product(inputs.t(), rows.t()).t()  # faster, the narrow first
        elif wants_weight:
            of_weight = _product(rows.t(), inputs.t())
        if wants_bias:
            of_bias = rows.sum(0)
        return of_x, of_weight, of_bias


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return ONEDNN(x, weight, bias, "none", [], "")
