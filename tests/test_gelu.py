"""Our GELU is torch's: values, both derivatives, and under torch.func."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, vmap

from tokrl.models.gelu import ENOUGH, ENOUGH_FOR_GRADIENT, gelu


def torch_gelu(x):
    return F.gelu(x, approximate="tanh")


def draw(rows, dtype=torch.float64):
    """From -15 to 15: the flat ends, the bend, and 0."""
    wide = torch.linspace(-15, 15, 129, dtype=torch.float64).repeat(rows, 1)
    return wide.to(dtype)


ROWS = 1 + ENOUGH_FOR_GRADIENT // 129
assert ENOUGH < ENOUGH_FOR_GRADIENT


@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float32, 2e-6), (torch.float64, 1e-14)]
)
def test_values_and_gradient(dtype, close):
    x = draw(ROWS, dtype)
    with torch.no_grad():
        torch.testing.assert_close(gelu(x), torch_gelu(x), rtol=close, atol=close)
    x.requires_grad_()
    direction = draw(ROWS, dtype).flip(1).cos()
    found = [
        (y, *torch.autograd.grad(y, x, direction)) for y in (gelu(x), torch_gelu(x))
    ]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=10 * close, atol=10 * close)


@pytest.mark.parametrize("columns", [slice(None, None, 2), slice(3, 40)])
def test_a_view_is_read_and_left_as_it_was(columns):
    whole = draw(4 * ROWS)
    before, x = whole.clone(), whole[:, columns]
    with torch.no_grad():
        torch.testing.assert_close(gelu(x), torch_gelu(x), rtol=0, atol=1e-14)
    x = x.t().requires_grad_()
    torch.testing.assert_close(gelu(x), torch_gelu(x), rtol=0, atol=1e-14)
    assert torch.equal(whole, before)


def test_the_second_derivative():
    x = draw(ROWS).requires_grad_()
    found = []
    for function in (gelu, torch_gelu):
        (slope,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), x)[0])
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


def test_a_gradient_for_each_row():
    """As private training takes it; a row alone has enough numbers."""
    rows = draw(3 * ROWS).view(3, -1) + torch.tensor([[0.0], [0.1], [0.2]])
    found = [
        vmap(grad(lambda row, f=function: f(row).square().sum()))(rows)
        for function in (gelu, torch_gelu)
    ]
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


def test_it_is_used_where_there_is_enough():
    names = [gelu(draw(rows).requires_grad_()).grad_fn.name() for rows in (1, ROWS)]
    assert names == ["GeluBackward0", "_GeluBackward"]


def test_half_precision_is_left_to_torch():
    x = draw(ROWS, torch.bfloat16)
    assert torch.equal(gelu(x), torch_gelu(x))
