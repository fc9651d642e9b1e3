"""The loss of a critic: how far its values are from the returns."""

import torch
from torch import Tensor

from tokrl.losses.aggregate import token_weights
from tokrl.masking import masked_mean, masked_sum, require_shape, zero_masked


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    completion_mask: Tensor,
    clip: float | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Half the mean squared error of values against returns.

    values           (B, T), in units of the reward, of the critic being trained
    old_values       (B, T), of the critic when the tokens were sampled
    returns          (B, T), advantages + old_values, see `compute_gae`
    completion_mask  (B, T), 1 on the tokens that count
    clip             the larger of two errors counts, of the value and of the value
                     held within `clip` of the old one, so that a step that has moved
                     it that far towards the return earns nothing more; None: no clip
    weights          (B, T), by default those of the mean over tokens; for a part of
                     a batch, the slice of the weights of the whole
    No gradient flows through returns and old values.
    Returns the loss, a scalar, and metrics: `clip_frac`, the share of tokens at which
    the clip cuts the gradient off.
    Source: the reference code of PPO, Schulman et al. 2017.
    Raises ValueError for shapes that differ or a clip that is not above 0.
    """
    if clip is not None and not clip > 0:
        raise ValueError(f"clip={clip!r}: give a number above 0, or None for no clip")
    mask = completion_mask
    matrices = {
        "values": values,
        "old_values": old_values.detach(),
        "returns": returns.detach(),
    }
    require_shape(mask, **matrices)
    values, old_values, returns = (
        zero_masked(matrix, mask) for matrix in matrices.values()
    )
    error = unclipped = (values - returns).square()
    if clip is not None:
        held = values.clamp(old_values - clip, old_values + clip)
        error = torch.maximum(unclipped, (held - returns).square())
    if weights is None:
        weights = token_weights(mask.to(error.dtype))
    loss = 0.5 * masked_sum(error * weights, mask)
    cut = (error > unclipped).to(error.dtype)
    return loss, {"clip_frac": float(masked_mean(cut, mask))}
