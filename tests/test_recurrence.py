"""Our recurrences are torch's: values, states and gradients."""

import pytest
import torch
from torch import nn

from tokrl.models.recurrence import can_unroll, unroll

KINDS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def make(kind, layers=1, width=5, dtype=torch.float64):
    torch.manual_seed(1)
    return KINDS[kind](width, width, layers, batch_first=True).to(dtype)


def draw(*shape, seed=0, dtype=torch.float64):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=dtype).requires_grad_()


def of_torch(cells, x, state):
    lstm = isinstance(cells, nn.LSTM)
    hidden, last = cells(x, state if lstm or state is None else state[0])
    return hidden, last if lstm else (last,)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float32, 2e-5), (torch.float64, 1e-13)]
)
def test_values_and_gradients(kind, layers, given, dtype, close):
    cells = make(kind, layers, dtype=dtype)
    x = draw(3, 7, 5, dtype=dtype)
    parts = range(2 if kind == "lstm" else 1)
    state = tuple(draw(layers, 3, 5, seed=9 + i, dtype=dtype) for i in parts)
    inputs = [x, *(state if given else ()), *cells.parameters()]
    found = []
    for way in (unroll, of_torch):
        hidden, last = way(cells, x, state if given else None)
        sums = [(y * (1 + y.detach().sin())).sum() for y in (hidden, *last)]
        grads = torch.autograd.grad(sum(sums), inputs)
        found.append([hidden, *last, *grads])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=close, atol=close)
        assert ours.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("only", ["hidden", "last"])
def test_a_gradient_from_a_part_alone(kind, only):
    """Of the states but not of the end, or the other way round, and of one token."""
    cells, x = make(kind), draw(2, 1, 5)
    found = []
    for way in (unroll, of_torch):
        hidden, last = way(cells, x, None)
        wanted = hidden if only == "hidden" else last[-1]
        found.append(torch.autograd.grad(wanted.square().sum(), [x]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_given_is_left_as_it_was(kind):
    cells, x = make(kind), draw(2, 4, 5)
    state = tuple(draw(1, 2, 5, seed=3) for _ in range(2 if kind == "lstm" else 1))
    before = [t.detach().clone() for t in (x, *state, *cells.parameters())]
    hidden, _ = unroll(cells, x, state)
    hidden.sum().backward()
    for old, new in zip(before, (x, *state, *cells.parameters()), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_derivative_is_refused(kind):
    cells, x = make(kind), draw(2, 3, 5)
    hidden, _ = unroll(cells, x, None)
    (slope,) = torch.autograd.grad(hidden.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_without_a_gradient_torch_runs():
    cells, x = make("gru"), draw(1, 2, 5)
    assert can_unroll(cells, x)
    assert not can_unroll(cells, x.half())
    assert not can_unroll(cells, x[:, :0])
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_unroll(cells, x)
    with torch.no_grad():
        assert not can_unroll(cells, x)
    assert not can_unroll(cells.requires_grad_(False), x)
