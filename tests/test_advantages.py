"""Returns, advantages, whitening: by hand, by definition, and safe from rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokrl.advantages import (
    compute_gae,
    group_advantages,
    leave_one_out,
    leave_one_out_advantages,
    returns_to_go,
)
from tokrl.masking import length_mask, whiten, zero_masked

F64 = torch.float64


def batch(seed, lengths=(5, 1, 3, 7), size=7):
    """Random token rewards and values, with garbage where the mask is 0."""
    generator = torch.Generator().manual_seed(seed)
    shape = len(lengths), size
    rewards = torch.randn(shape, generator=generator, dtype=F64)
    values = torch.randn(shape, generator=generator, dtype=F64)
    mask = length_mask(torch.tensor(lengths), size)
    rewards[mask == 0], values[mask == 0] = torch.nan, torch.inf
    return rewards, values, mask


def close(got, expected, atol=1e-12):
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


# Generalised advantage estimates


def test_gae_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 2.0, 9.0]])
    values = torch.tensor([[0.5, 1.0, -1.0, 9.0]])
    mask = torch.tensor([[1, 1, 1, 0]])
    # delta_2 = 2 - (-1); delta_1 = 0 + 0.5 (-1) - 1; delta_0 = 1 + 0.5 1 - 0.5
    # A_2 = 3; A_1 = -1.5 + 0.25 3; A_0 = 1 + 0.25 (-0.75)
    advantages, returns = compute_gae(rewards, values, mask, 0.5, 0.5)
    assert advantages.tolist() == [[0.8125, -0.75, 3.0, 0.0]]
    assert returns.tolist() == [[1.3125, 0.25, 2.0, 0.0]]


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1, 0.95), (0.9, 0.7), (0.3, 1)])
def test_gae_is_the_double_sum_of_its_definition(gamma, gae_lambda):
    rewards, values, mask = batch(0)
    advantages, returns = compute_gae(rewards, values, mask, gamma, gae_lambda)
    for i, length in enumerate(mask.sum(-1).tolist()):
        v = [*values[i, :length].tolist(), 0.0]
        r = rewards[i, :length].tolist()
        for t in range(length):
            exact = sum(
                (gamma * gae_lambda) ** k * (r[t + k] + gamma * v[t + k + 1] - v[t + k])
                for k in range(length - t)
            )
            assert advantages[i, t].item() == pytest.approx(exact, abs=1e-12)
            assert returns[i, t].item() == pytest.approx(exact + v[t], abs=1e-12)
    assert not advantages[mask == 0].any()
    assert not returns[mask == 0].any()


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_gae_with_lambda_1_is_return_to_go_minus_value(gamma):
    rewards, values, mask = batch(1)
    advantages, returns = compute_gae(rewards, values, mask, gamma, 1.0)
    to_go = returns_to_go(rewards, mask, gamma)
    close(advantages, to_go - zero_masked(values, mask))
    close(returns, to_go)


def test_gae_with_lambda_0_is_the_error_of_one_step():
    rewards, values, mask = batch(2)
    advantages, returns = compute_gae(rewards, values, mask, 0.8, 0.0)
    following = torch.cat([zero_masked(values, mask)[:, 1:], torch.zeros(4, 1)], 1)
    close(returns, zero_masked(rewards + 0.8 * following, mask))
    close(advantages, zero_masked(rewards + 0.8 * following - values, mask))


def test_gae_of_exact_values_is_zero_where_nothing_is_left_to_chance():
    rewards, _, mask = batch(3)
    values = returns_to_go(rewards, mask, 0.9)
    for gae_lambda in (0.0, 0.5, 1.0):
        advantages, returns = compute_gae(rewards, values, mask, 0.9, gae_lambda)
        close(advantages, torch.zeros_like(advantages))
        close(returns, values)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.booleans(), min_size=5, max_size=9).filter(any), st.integers(0, 99))
def test_columns_that_do_not_count_change_nothing(counted, seed):
    """A row with holes gives what the same row gives without them."""
    counted = torch.tensor(counted)
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(
        2, 1, len(counted), generator=generator, dtype=F64
    ).masked_fill(~counted, torch.nan)
    mask = counted.long()[None]
    dense = [x[:, counted] for x in (rewards, values, mask)]
    for got, expected in [
        (returns_to_go(rewards, mask, 0.7), returns_to_go(dense[0], dense[2], 0.7)),
        *zip(
            compute_gae(rewards, values, mask, 0.7, 0.9),
            compute_gae(*dense, 0.7, 0.9),
            strict=True,
        ),
    ]:
        assert torch.equal(got[:, counted], expected)
        assert not got[:, ~counted].any()


def test_a_price_on_each_token_is_charged_to_it_and_to_those_before_it():
    """Not as a mean over the sequence that is paid on its last token."""
    drift = torch.tensor([[0.5, -0.25, 1.0], [2.0, 4.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert returns_to_go(-drift, mask).tolist() == [[-1.25, -0.75, -1], [-6, -4, 0]]


def test_a_vector_where_a_matrix_is_due_is_an_error():
    rewards, values, mask = batch(4)
    with pytest.raises(ValueError, match=r"values has shape \(4, 1\)"):
        compute_gae(rewards, values[:, :1], mask)
    with pytest.raises(ValueError, match=r"token_rewards has shape \(7,\)"):
        returns_to_go(rewards[0], mask)
    for credit in (group_advantages, leave_one_out_advantages):
        for wrong in (rewards, rewards[:, :1]):
            with pytest.raises(
                ValueError, match=r"numbers of shape \(4, .*one for each"
            ):
                credit(wrong, 2, mask)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_whole_rewards_are_the_same_as_real_ones(dtype):
    """Written as integers they are no less rewards, and their credit no integer."""
    real, values, mask = batch(4)
    whole = real > 0
    real, whole = whole.to(values.dtype), whole.to(dtype)
    close(returns_to_go(whole, mask, 0.9).to(values.dtype),
          returns_to_go(real, mask, 0.9), 1e-6)  # fmt: skip
    for got, expected in zip(
        compute_gae(whole, values, mask, 0.9), compute_gae(real, values, mask, 0.9),
        strict=True,
    ):  # fmt: skip
        close(got, expected, 1e-6)
    for credit in (group_advantages, leave_one_out_advantages):
        got = credit(whole[:, 0], 2, mask).to(values.dtype)
        close(got, credit(real[:, 0], 2, mask), 1e-6)


# Groups


def test_group_advantages_by_hand():
    rewards = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1], [1, 1], [1, 1]])
    plain = group_advantages(rewards, 3, mask, "none")
    assert plain[:, 0].tolist() == [-2.0, -1.0, 3.0, 0.0, 0.0, 0.0]
    assert plain[:, 1].tolist() == [-2.0, 0.0, 3.0, 0.0, 0.0, 0.0]
    # Squares of the group: 4 + 1 + 9, over G - 1 = 2. Of the batch, whose mean is 4:
    # 9 + 4 + 4 + 1 + 1 + 1, over 5.
    scaled = group_advantages(rewards, 3, mask)
    close(scaled, plain / (7**0.5 + 1e-4), atol=1e-6)
    scaled = group_advantages(rewards, 3, mask, "batch")
    close(scaled, plain / (2 + 1e-4), atol=1e-6)


def test_subtracting_the_mean_is_leave_one_out_made_smaller():
    rewards = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=F64)
    mask = torch.ones(12, 3)
    for size in (2, 3, 4):
        mean = group_advantages(rewards, size, mask, "none")
        others = leave_one_out_advantages(rewards, size, mask)
        close(mean, others * (1 - 1 / size))


@pytest.mark.parametrize("size", [2, 3, 7, 8])
def test_equal_rewards_give_exactly_zero(size):
    mask = torch.ones(2 * size, 2)
    for value in (0.1, 0.3, 0.7, -1.1, 1e4 / 3):
        rewards = torch.full((2 * size,), value)
        for scale in ("std", "none", "batch"):
            assert not group_advantages(rewards, size, mask, scale).any()
        assert not leave_one_out_advantages(rewards, size, mask).any()
        # Beside a group that has a signal, too.
        rewards[-1] += 1
        for scale in ("std", "none", "batch"):
            advantages = group_advantages(rewards, size, mask, scale)
            assert not advantages[:size].any()
            assert advantages[size:].all()


def test_the_plain_formula_would_not_give_zero():
    """So the test above is about something."""
    off = [
        (size, value)
        for size in (3, 7, 8)
        for value in (0.1, 0.3, 0.7, -1.1, 1e4 / 3)
        if (rewards := torch.full((size,), value)).sub(rewards.mean()).any()
    ]
    assert off


def test_leave_one_out_of_returns_compares_tokens_at_the_same_place():
    returns = torch.tensor([[3.0, 1.0], [5.0, 0.0], [1.0, 2.0]])
    assert leave_one_out(returns, 3).tolist() == [[3.0, 1.0], [2.0, 1.5], [4.0, 0.5]]


@pytest.mark.parametrize("size", [0, 1, 4])
def test_a_group_size_that_does_not_fit_is_named(size):
    for function in (group_advantages, leave_one_out_advantages):
        with pytest.raises(ValueError, match=f"group_size={size} with 6 rows"):
            function(torch.zeros(6), size, torch.ones(6, 2))
    with pytest.raises(ValueError, match="scale='mean'"):
        group_advantages(torch.zeros(6), 2, torch.ones(6, 2), "mean")


# Whitening


def test_whitened_values_have_mean_0_and_variance_1():
    values, _, mask = batch(5)
    before = values.clone()
    kept = mask.bool()
    white = whiten(values, mask)
    assert white[kept].mean().item() == pytest.approx(0, abs=1e-12)
    assert white[kept].var().item() == pytest.approx(1, abs=1e-7)
    assert (white[kept].argsort() == values[kept].argsort()).all()
    assert not white[~kept].any()
    shifted = whiten(values, mask, shift_mean=False)
    close(shifted[kept], white[kept] + values[kept].mean())
    assert not shifted[~kept].any()
    assert torch.equal(torch.nan_to_num(values), torch.nan_to_num(before))


def test_whitening_by_hand():
    values = torch.tensor([[1.0, 3.0, 99.0], [5.0, 99.0, 99.0]], dtype=F64)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    expected = torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=F64)
    close(whiten(values, mask), expected, atol=1e-8)


def test_values_without_a_signal_are_not_magnified():
    for value in (0.1, 0.3, 0.7):
        values = torch.full((3, 7), value)
        assert not whiten(values, torch.ones(3, 7)).any()
    one = torch.tensor([[1, 0, 0]])
    assert not whiten(torch.tensor([[3.0, 1.0, 2.0]]), one).any()
    assert not whiten(torch.tensor([[3.0, 1.0, 2.0]]), 0 * one).any()
