"""Linear maps by oneDNN are those of torch, whatever the matrices lie like."""

import platform

import pytest
import torch
import torch.nn.functional as F

from tokrl import models
from tokrl.models import linear as room
from tokrl.models.linear import ENOUGH, Linear, linear
from tokrl.sampling import generate
from tokrl.scoring import token_logprobs


@pytest.fixture(autouse=True)
def faster(monkeypatch):
    """These are tests of oneDNN, also on processors where it is not the faster one."""
    monkeypatch.setattr(room, "FASTER", room.ONEDNN is not None)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64")
    or not torch.backends.mkldnn.is_available(),
    reason="this torch has no oneDNN",
)
def test_the_operator_is_found_where_torch_has_it():
    """Were it not, all would be right and slow, and no other test would tell."""
    assert room.ONEDNN is not None
    assert room._is_worth_it(torch.ones(ENOUGH // 64, 1), torch.ones(64, 1))


@pytest.mark.parametrize(
    "lay",
    [
        lambda x: x,
        lambda x: x[:, ::2],  # rows apart
        lambda x: x[:, -7:],
        lambda x: x.transpose(0, 1),
        lambda x: x[:1, :1].expand(12, 40, -1),
        lambda x: x[0],
    ],
)
@pytest.mark.parametrize("sizes", [(64, 96), (96, 64), (64, 64)])
def test_any_layout_and_the_gradients(lay, sizes):
    """Float32 through oneDNN against torch's own float64, wide and narrow."""
    inputs, outputs = sizes
    given = draw(12, 40, inputs), draw(outputs, inputs, seed=1), draw(outputs, seed=2)
    results = []
    for dtype, product in ((torch.float32, linear), (torch.float64, F.linear)):
        x, weight, bias = (t.to(dtype).requires_grad_() for t in given)
        out = product(lay(x).repeat(8, *[1] * (lay(x).dim() - 1)), weight, bias)
        sums = out.mean(0).sin().sum()  # a gradient that is one row, repeated
        results.append((out, *torch.autograd.grad(sums, (x, weight, bias))))
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("learn", ["all", "weight", "x"])
def test_large_products_are_those_of_torch(bias, learn):
    """Outputs and gradients of a float32 product by oneDNN against float64."""
    draws = torch.Generator().manual_seed(0)
    x, weight, direction = (
        torch.randn(*shape, generator=draws, dtype=torch.float64)
        for shape in ((6, 70, 64), (96, 64), (6, 70, 96))
    )
    b = torch.randn(96, generator=draws, dtype=torch.float64) if bias else None
    results = []
    for dtype, product in ((torch.float32, linear), (torch.float64, F.linear)):
        given = [None if t is None else t.to(dtype).detach() for t in (x, weight, b)]
        for tensor, name in zip(given, ("x", "weight", "bias"), strict=True):
            if tensor is not None and learn in ("all", name):
                tensor.requires_grad_()
        out = product(*given)
        (out * direction.to(dtype)).sum().backward()
        results.append([out, *(t.grad for t in given if t is not None)])
    assert results[0][0].numel() * 64 >= ENOUGH
    for ours, exact in zip(*results, strict=True):
        assert (ours is None) == (exact is None)
        if ours is not None:
            torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-3)


def test_both_are_timed_whatever_the_default_type_is():
    """A chapter sets float64 before it imports models; oneDNN has none."""
    torch.set_default_dtype(torch.float64)
    try:
        assert room._is_faster() in (True, False)
    finally:
        torch.set_default_dtype(torch.float32)


def test_without_the_operator_torch_multiplies(monkeypatch):
    x, weight = torch.randn(600, 64), torch.randn(64, 64)
    monkeypatch.setattr("tokrl.models.linear.ONEDNN", None)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_gelu_in_one_go_is_gelu_after_the_product():
    layer, x = Linear(64, 256), draw(2, 100, 64).float()
    assert x.numel() * 256 >= ENOUGH
    expected = F.gelu(F.linear(x, layer.weight, layer.bias), approximate="tanh")
    with torch.no_grad():
        torch.testing.assert_close(layer.gelu(x), expected, rtol=1e-4, atol=1e-5)
    learning = layer.gelu(x)
    torch.testing.assert_close(learning, expected, rtol=1e-4, atol=1e-5)
    gradients = [
        torch.autograd.grad(out.square().sum(), layer.weight)[0]
        for out in (learning, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-2)


def test_sampled_and_scored_logprobs_agree_in_float32():
    """A model wide enough for oneDNN in the sampler, the scorer and the gradient."""
    generator = torch.Generator().manual_seed(0)
    model = models.build("transformer", 300, generator, width=128, layers=2)
    ids = torch.randint(300, (4, 9), generator=generator).repeat_interleave(16, 0)
    given = ids, torch.ones_like(ids)
    out, mask, logprobs = generate(model, *given, 12, eos_id=2, generator=generator)
    assert len(out) * 128 * 300 >= ENOUGH
    scored = token_logprobs(model, *given, out, mask)
    torch.testing.assert_close(logprobs, scored.detach(), rtol=0, atol=2e-5)
    exact = token_logprobs(model.double(), *given, out, mask)
    torch.testing.assert_close(scored.double(), exact, rtol=0, atol=2e-5)
