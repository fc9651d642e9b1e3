"""From a matrix of per-token terms to one number."""

from torch import Tensor

from tokrl.masking import masked_sum, require_shape

MODES = ("token_mean", "sequence_mean", "constant")


def token_weights(
    mask: Tensor, mode: str = "token_mean", max_length: int | None = None
) -> Tensor:
    """How much each token counts in a loss, (B, T); 0 where masked.

    mask        (B, T), m_it; len_i is the number of ones in row i
    max_length  the constant of `constant`, tokens: the longest completion there may be
    token_mean     m_it / (sum of m): a token is a token, and a long completion
                   counts more (DAPO, Yu et al. 2025)
    sequence_mean  m_it / (B len_i): completions count alike, and a token of a long
                   one less (GRPO, Shao et al. 2024)
    constant       m_it / (B max_length): tokens count alike whatever the lengths in
                   the batch, which is what the policy gradient asks for
                   (Dr. GRPO, Liu et al. 2025)
    Take them once over a whole batch and slices of them for its parts: then the
    gradients of the parts add up to the gradient of the batch, in every mode.
    Raises ValueError for another mode, or `constant` without max_length.
    """
    rows = mask.shape[0]
    if mode == "token_mean":
        return mask / mask.sum().clamp(min=1)
    if mode == "sequence_mean":
        return mask / (rows * mask.sum(-1, keepdim=True).clamp(min=1))
    if mode == "constant":
        if not max_length or max_length < 1:
            raise ValueError(f"max_length={max_length!r}: mode 'constant' needs one")
        return mask / (rows * max_length)
    raise ValueError(f"mode={mode!r}: give one of {', '.join(MODES)}")


def aggregate(
    matrix: Tensor,
    mask: Tensor,
    mode: str = "token_mean",
    max_length: int | None = None,
) -> Tensor:
    """Add up a (B, T) matrix under its mask: the sum of its terms times their weights.

    mode, max_length, errors: see `token_weights`; ValueError for shapes that differ.
    """
    require_shape(mask, matrix=matrix)
    weights = token_weights(mask.to(matrix.dtype), mode, max_length)
    return masked_sum(matrix * weights, mask)
