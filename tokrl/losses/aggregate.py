"""From a matrix of per-token terms to one number."""

from torch import Tensor

from tokrl.masking import masked_mean, masked_sum

MODES = ("token_mean", "sequence_mean", "constant")


def aggregate(
    matrix: Tensor,
    mask: Tensor,
    mode: str = "token_mean",
    max_length: int | None = None,
) -> Tensor:
    """Add up a (B, T) matrix under its mask.

    token_mean     sum / number of unmasked tokens (DAPO, Yu et al. 2025)
    sequence_mean  mean over rows of each row's token mean (GRPO, Shao et al. 2024)
    constant       sum / (B max_length), the same weight for every token whatever
                   the lengths (Dr. GRPO, Liu et al. 2025)
    Raises ValueError for another mode, or `constant` without max_length.
    """
    if mode == "token_mean":
        return masked_mean(matrix, mask)
    if mode == "sequence_mean":
        return masked_mean(matrix, mask, -1).mean()
    if mode == "constant":
        if not max_length or max_length < 1:
            raise ValueError(f"max_length={max_length!r}: mode 'constant' needs one")
        return masked_sum(matrix, mask) / (matrix.shape[0] * max_length)
    raise ValueError(f"mode={mode!r}: give one of {', '.join(MODES)}")
