"""Sampling draws from the model's distribution and reports its log-probs."""

import pytest
import torch

from tokrl import models
from tokrl.masking import pad
from tokrl.sampling import generate, sample_next_token
from tokrl.scoring import entropy, token_logprobs


@pytest.fixture
def model():
    generator = torch.Generator().manual_seed(3)
    shape = {"width": 16, "layers": 2, "heads": 2, "max_length": 40}
    return models.build("transformer", 9, generator, **shape).double()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def prompts():
    return pad([[1], [1, 4, 5], [1, 7], [1, 4, 5, 6, 8]] * 4)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
def test_logprobs_equal_those_of_scoring(model, temperature):
    ids, mask = prompts()
    out, out_mask, logprobs = generate(
        model, ids, mask, 12, temperature, eos_id=2, generator=seeded()
    )
    scored = token_logprobs(model, ids, mask, out, out_mask, temperature)
    torch.testing.assert_close(logprobs.double(), scored, rtol=0, atol=1e-6)
    torch.set_default_dtype(torch.float64)
    try:
        _, _, logprobs = generate(
            model, ids, mask, 12, temperature, eos_id=2, generator=seeded()
        )
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(logprobs, scored, rtol=0, atol=1e-12)


def test_the_end_token_is_kept_and_nothing_after_it(model):
    ids, mask = prompts()
    out, out_mask, logprobs = generate(
        model, ids, mask, 20, eos_id=2, generator=seeded()
    )
    lengths = out_mask.sum(-1)
    assert 1 <= lengths.min() < lengths.max() == out.shape[1]
    for row, kept, logprob in zip(out, out_mask, logprobs, strict=True):
        size = int(kept.sum())
        assert kept[:size].all()
        assert (row[: size - 1] != 2).all()
        assert row[size - 1] == 2 or size == 20
        assert (row[size:] == 0).all()
        assert (logprob[size:] == 0).all()


def test_without_an_end_token_every_row_runs_to_the_limit(model):
    ids, mask = prompts()
    out, out_mask, _ = generate(model, ids, mask, 6, generator=seeded())
    assert out.shape == (16, 6)
    assert out_mask.all()


def test_a_seed_decides_the_tokens(model):
    ids, mask = prompts()
    first, again, other = (
        generate(model, ids, mask, 8, generator=seeded(seed))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_draws_follow_the_distribution():
    logits = torch.tensor([[0.5, -1.0, 2.0, 0.0]]).expand(200_000, -1)
    uniform = torch.rand(200_000, generator=seeded(), dtype=torch.float64)
    for temperature in (1.0, 2.0):
        ids, logprobs = sample_next_token(logits, uniform, temperature)
        expected = (logits[0] / temperature).softmax(-1)
        seen = torch.bincount(ids, minlength=4) / len(ids)
        torch.testing.assert_close(seen, expected, rtol=0, atol=4e-3)
        torch.testing.assert_close(logprobs, expected.log()[ids])


def test_the_inverse_cdf_at_its_edges():
    logits = torch.tensor([[0.0, -torch.inf, 0.0]]).expand(3, -1)
    uniform = torch.tensor([0.0, 0.5, 1 - 1e-16], dtype=torch.float64)
    ids, _ = sample_next_token(logits, uniform)
    assert ids.tolist() == [0, 2, 2], "a token of probability 0 is never drawn"


def test_top_k_and_top_p_keep_the_likeliest():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(20_000, -1)
    uniform = torch.rand(20_000, generator=seeded(), dtype=torch.float64)
    for options, kept in [
        ({"top_k": 1}, 1), ({"top_k": 3}, 3), ({"top_k": 9}, 4),
        ({"top_p": 0.05}, 1), ({"top_p": 0.65}, 2), ({"top_p": 0.95}, 4),
    ]:  # fmt: skip
        ids, logprobs = sample_next_token(logits, uniform, **options)
        assert set(ids.tolist()) == set(range(kept)), options
        torch.testing.assert_close(logprobs, logits[0][ids])


def test_entropy_by_hand():
    logits = torch.tensor([[0.0, 0.0, -1e9], [3.0, -1e9, -1e9]])
    torch.testing.assert_close(entropy(logits), torch.tensor([2.0, 1.0]).log())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"temperature": 0.0}, "temperature"), ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"), ({"top_p": 1.5}, "top_p"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(model, options, name):
    ids, mask = prompts()
    with pytest.raises(ValueError, match=name):
        generate(model, ids, mask, 3, **options)
    with pytest.raises(ValueError, match="max_new_tokens"):
        generate(model, ids, mask, 0)
