"""The Transformer's own: attention, size, weights, files; the rest: test_protocol."""

import copy
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tokrl import models
from tokrl.models import linear, transformer


@pytest.fixture
def model():
    generator = torch.Generator().manual_seed(0)
    shape = {"width": 32, "layers": 3, "heads": 4, "max_length": 24}
    return models.build("transformer", 11, generator, **shape).double()


def draw(*shape, seed=0):
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed))


def test_attention_by_hand():
    """Two queries and keys: weights 1/4 and 3/4, then a hidden key."""
    q = torch.tensor([[0.0, 0.0], [math.log(3) * math.sqrt(2), 0.0]])
    k = torch.tensor([[1.0, 5.0], [2.0, 5.0]])
    v = torch.tensor([[4.0, 0.0], [8.0, 4.0]])
    got = models.attention(q, k, v, None)
    torch.testing.assert_close(got, torch.tensor([[6.0, 2.0], [7.0, 3.0]]))
    got = models.attention(q, k, v, torch.tensor([[0.0, -math.inf], [0.0, 0.0]]))
    torch.testing.assert_close(got, torch.tensor([[4.0, 0.0], [7.0, 3.0]]))


@pytest.mark.parametrize("few", [0, 64])
def test_fused_attention_is_the_one_written_out(model, monkeypatch, few):
    """The same outputs and gradients, whichever way a block attends."""
    monkeypatch.setattr(transformer, "FEW_QUERIES", 0)
    monkeypatch.setattr(transformer, "FEW_KEYS", few)
    block = model.blocks[0]
    later = torch.full((7, 7), -math.inf, dtype=torch.float64).triu(1)
    results = []
    for way in (None, later):
        x = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(1)).double()
        x.requires_grad_()
        model.zero_grad()
        out = block.attend(x, way, None, 0)
        out.sin().sum().backward()
        results.append((out, x.grad, block.qkv.weight.grad, block.out.weight.grad))
    for fused, written in zip(*results, strict=True):
        torch.testing.assert_close(fused, written, rtol=0, atol=1e-12)
    assert results[0][2].abs().sum() > 1


@torch.no_grad()
@pytest.mark.parametrize("copies", [1, 8])
def test_a_cache_may_outgrow_its_memory(model, copies):
    begin, own = draw(1, 5), draw(copies, 9, seed=1)
    whole, _ = model(torch.cat([begin.expand(copies, -1), own], -1))
    cache = model.new_cache(1, 6)
    model(begin, None, cache)
    cache.keep(torch.zeros(copies, dtype=torch.int64))
    assert cache.keys[0].shape == (copies, 4, 6, 8)
    for t in range(9):
        logits, _ = model(own[:, t : t + 1], None, cache)
        torch.testing.assert_close(logits[:, 0], whole[:, 5 + t], rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_copy_of_a_cache_goes_on_by_itself(model):
    """Both by one token and by several, in turns, in the room of neither."""
    begin, rest = draw(2, 4), draw(2, 2, 8, seed=1)
    whole = [model(torch.cat([begin, own], -1))[0][:, 4:] for own in rest]
    caches = [model.new_cache(2, 9)]
    model(begin, None, caches[0])
    caches.append(copy.copy(caches[0]))
    start = 0
    for size in (1, 3, 1, 1, 2):
        for cache, own, expected in zip(caches, rest, whole, strict=True):
            span = slice(start, start + size)
            logits, _ = model(own[:, span], None, cache)
            torch.testing.assert_close(logits, expected[:, span], rtol=0, atol=1e-10)
        start += size


@pytest.mark.parametrize("faster", [False, True])
def test_a_token_at_a_time_goes_the_brief_way_and_says_the_same(
    model, monkeypatch, faster
):
    """Unless a gradient is asked for, or oneDNN would be faster in float32."""
    monkeypatch.setattr(linear, "FASTER", faster and linear.ONEDNN is not None)
    brief, read = [], models.Transformer._one_more
    monkeypatch.setattr(
        models.Transformer, "_one_more", lambda *args: brief.append(1) or read(*args)
    )
    ids = draw(4, 9)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        whole = model.to(dtype)(ids)[0]
        for grad in (False, True):
            brief.clear()
            with torch.set_grad_enabled(grad):
                cache = model.new_cache(4, 9)
                model(ids[:, :4], None, cache)
                steps = [model(ids[:, t : t + 1], None, cache)[0] for t in range(4, 9)]
            found = torch.cat(steps, 1)
            torch.testing.assert_close(found, whole[:, 4:], rtol=0, atol=tolerance)
            by_onednn = linear.FASTER and dtype is torch.float32
            assert len(brief) == (0 if grad or by_onednn else 5)
            assert found.requires_grad == grad


def test_attention_weights_are_those_the_model_mixes_with(model):
    """In every block the weights times the values are what the block goes on with."""
    ids, seen = draw(2, 9), []
    hooks = [
        part.register_forward_hook(lambda _, given, made: seen.append((given[0], made)))
        for block in model.blocks
        for part in (block.qkv, block.out)
    ]
    model(ids)
    for hook in hooks:
        hook.remove()
    weights = model.attention_weights(ids)
    assert len(weights) == len(model.blocks)
    for w, (_, qkv), (mixed, _) in zip(weights, seen[::2], seen[1::2], strict=True):
        v = qkv[..., 64:].reshape(2, 9, 4, 8).transpose(1, 2)
        expected = (w @ v).transpose(1, 2).reshape(2, 9, 32)
        torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(w.sum(-1), torch.ones(2, 4, 9).double())
        assert w.triu(1).abs().max() == 0
    with pytest.raises(ValueError, match="at most 24"):
        model.attention_weights(draw(1, 25))


def test_number_of_parameters_by_hand(model):
    width, vocab, length, layers = 32, 11, 24, 3
    block = 12 * width**2 + 13 * width
    by_hand = (vocab + length) * width + layers * block + 2 * width
    assert models.num_parameters(model) == by_hand


def test_a_seed_decides_the_weights_and_leaves_torchs_own_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (
        models.build("transformer", 7, torch.Generator().manual_seed(seed), width=8)
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b, c in zip(*(m.parameters() for m in (first, again, other)), strict=True):
        assert torch.equal(a, b)
        if a.dim() == 2:
            assert not torch.equal(a, c)


@pytest.mark.parametrize("keep", [0, 10, 5000])
def test_a_truncated_file_is_refused_by_name(model, tmp_path, keep):
    path = tmp_path / "model.safetensors"
    models.save(model, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        models.load(path)


def test_wrong_arguments_are_named(model):
    with pytest.raises(ValueError, match="'mamba'"):
        models.build("mamba", 7)
    with pytest.raises(ValueError, match="depth"):
        models.build("transformer", 7, depth=3)
    with pytest.raises(ValueError, match="heads=5"):
        models.build("transformer", 7, heads=5)
    with pytest.raises(ValueError, match="at most 24"):
        model(draw(1, 25))


@torch.no_grad()
def test_the_sums_of_a_token_are_counted_whichever_way_it_is_read(model):
    """The book counts with torch's counter, which overlooks products in place."""
    ids, counts = draw(3, 7), []
    for brief in (True, False):
        cache = model.new_cache(3, 7)
        model(ids[:, :6], None, cache)
        if not brief:
            model._brief = lambda _: False
        with FlopCounterMode(display=False) as counter:
            model(ids[:, 6:], None, cache)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
