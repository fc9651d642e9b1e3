"""The Transformer: causality, padding, cache, files."""

import pytest
import torch
import torch.nn.functional as F

from tokrl import models
from tokrl.masking import pad


@pytest.fixture
def model():
    generator = torch.Generator().manual_seed(0)
    shape = {"width": 32, "layers": 3, "heads": 4, "max_length": 24}
    return models.build("transformer", 11, generator, **shape).double()


def draw(*shape, seed=0):
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed))


def test_a_token_does_not_see_what_follows(model):
    ids = draw(2, 10)
    logits, _ = model(ids)
    changed = ids.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 11
    again, _ = model(changed)
    torch.testing.assert_close(again[:, :6], logits[:, :6], rtol=0, atol=1e-12)
    assert (again[:, 6] - logits[:, 6]).abs().max() > 1e-3


def test_left_padding_changes_nothing(model):
    rows = [draw(n, seed=n).tolist() for n in (3, 9, 1, 6)]
    ids, mask = pad(rows)
    logits, _ = model(ids, mask)
    assert torch.isfinite(logits).all()
    for row, got in zip(rows, logits, strict=True):
        alone, _ = model(torch.tensor([row]))
        torch.testing.assert_close(got[-len(row) :], alone[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("padded", [False, True])
def test_cached_equals_uncached(model, padded):
    ids = draw(3, 12)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :4] = mask[2, :1] = 0
    whole, _ = model(ids, mask)
    cache = model.new_cache(3, 12)
    parts, at = [], 0
    for size in (5, 1, 1, 3, 2):
        piece = mask[:, at : at + size] if at == 0 else None
        logits, cache = model(ids[:, at : at + size], piece, cache)
        parts.append(logits)
        at += size
    got = torch.cat(parts, 1)
    real = mask.bool()
    torch.testing.assert_close(got[real], whole[real], rtol=0, atol=1e-10)


def test_dropped_rows_leave_the_others_alone(model):
    ids = draw(4, 8)
    whole, _ = model(ids)
    cache = model.new_cache(4, 8)
    model(ids[:, :5], None, cache)
    kept = torch.tensor([0, 3])
    cache.keep(kept)
    logits, _ = model(ids[kept, 5:6], None, cache)
    torch.testing.assert_close(logits[:, 0], whole[kept, 5], rtol=0, atol=1e-10)


def test_attention_is_softmax_of_scaled_products(model):
    """The block written out agrees with torch's own attention."""
    block = model.blocks[0]
    x = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(1)).double()
    blocked = torch.ones(7, 7, dtype=torch.bool).triu(1)[None, None]
    got = block.attend(x, blocked, None, 0)
    q, k, v = block.qkv(x).chunk(3, -1)
    heads = [part.view(2, 7, 4, 8).transpose(1, 2) for part in (q, k, v)]
    mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
    expected = block.out(mixed.transpose(1, 2).reshape(2, 7, 32))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


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


def test_save_and_load(model, tmp_path):
    path = tmp_path / "model.safetensors"
    models.save(model, path)
    again = models.load(path)
    ids = draw(2, 9)
    assert torch.equal(again(ids)[0], model(ids)[0])
    assert again.config == model.config


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
