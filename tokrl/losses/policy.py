"""The loss whose gradient improves a policy."""

import torch
from torch import Tensor

from tokrl.losses.aggregate import token_weights
from tokrl.losses.kl import kl_estimate
from tokrl.masking import masked_mean, masked_sum, require_shape, zero_masked

KINDS = ("reinforce", "ppo", "gspo", "gspo_token", "cispo")


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    completion_mask: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kind: str = "ppo",
    aggregate: str = "token_mean",
    max_length: int | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Minus what the policy should raise: the log-probs of tokens better than expected.

    logprobs         (B, T), nats, under the policy being trained; carries gradients
    old_logprobs     (B, T), under the policy that sampled the tokens
    advantages       (B, T), A_t; no gradient flows through them
    completion_mask  (B, T), 1 on the tokens that count
    clip_low, clip_high  how far the ratio may move: from 1 - clip_low to 1 + clip_high
    kind             the term of each token, with rho_t = pi(y_t|s_t) / pi_old(y_t|s_t)
                     and c(rho) = rho clipped to the range above:
      reinforce   -A_t log pi(y_t|s_t), no ratio: for tokens of the policy itself
                  (Williams 1992)
      ppo         -min(rho_t A_t, c(rho_t) A_t) (Schulman et al. 2017)
      gspo        the same with one ratio per row, s = exp(mean of log rho_t), whose
                  clip is far narrower: 3e-4 and 4e-4 in the paper (Zheng et al. 2025)
      gspo_token  the value of gspo, but the gradient of each token goes through its
                  own log-prob: the two differ where advantages differ within a row
      cispo       -min(rho_t, clip_high) A_t log pi(y_t|s_t), with no gradient through
                  the weight: no token is dropped (MiniMax 2025). Here clip_high caps
                  the weight itself, as `epsilon_high` does in TRL, which recommends
                  5; the paper writes the cap as 1 + eps_high. clip_low is not used.
    aggregate, max_length  how the terms add up, see `tokrl.losses.token_weights`
    weights          (B, T), in place of these two: for a part of a batch, the slice
                     of the weights of the whole
    Returns the loss, a scalar, and metrics over the tokens that count: `approx_kl`,
    the drift from the sampling policy (k3, nats per token); `ratio`, its mean;
    `clip_frac`, the share of tokens at which the clip cuts the gradient off (cispo:
    caps the weight), the sum of `clip_frac_low` and `clip_frac_high`.
    Raises ValueError for another kind, shapes that differ, a negative clip, or cispo
    with a cap below 1, which would bind where nothing has moved yet.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: give one of {', '.join(KINDS)}")
    if clip_low < 0 or clip_high < 0:
        raise ValueError(
            f"clip_low={clip_low}, clip_high={clip_high}: give numbers of at least 0"
        )
    if kind == "cispo" and clip_high < 1:
        raise ValueError(
            f"clip_high={clip_high}: with kind 'cispo' it caps the ratio itself, "
            "give at least 1, such as 5"
        )
    mask = completion_mask
    matrices = {
        "logprobs": logprobs,
        "old_logprobs": old_logprobs.detach(),
        "advantages": advantages.detach(),
    }
    require_shape(mask, **matrices)
    logprobs, old_logprobs, advantages = (
        zero_masked(matrix, mask) for matrix in matrices.values()
    )
    ratio = importance_ratio(logprobs, old_logprobs, mask, kind)
    low = high = torch.zeros_like(mask, dtype=torch.bool)
    if kind == "reinforce":
        gain = advantages * logprobs
    elif kind == "cispo":
        gain = ratio.clamp(max=clip_high).detach() * advantages * logprobs
        high = ratio > clip_high
    else:
        clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
        gain = torch.minimum(ratio * advantages, clipped * advantages)
        low = (ratio < 1 - clip_low) & (advantages < 0)
        high = (ratio > 1 + clip_high) & (advantages > 0)
    if weights is None:
        weights = token_weights(mask.to(gain.dtype), aggregate, max_length)
    require_shape(mask, weights=weights)
    loss = -masked_sum(gain * weights, mask)

    def mean(matrix: Tensor) -> float:
        return float(masked_mean(matrix.detach().to(gain.dtype), mask))

    return loss, {
        "approx_kl": mean(kl_estimate(old_logprobs, logprobs, "k3")),
        "ratio": mean(ratio),
        "clip_frac": mean(low | high),
        "clip_frac_low": mean(low),
        "clip_frac_high": mean(high),
    }


def importance_ratio(
    logprobs: Tensor, old_logprobs: Tensor, completion_mask: Tensor, kind: str
) -> Tensor:
    """How much likelier the tokens became since they were sampled, (B, T).

    Of each token by itself, rho_t; for the kinds gspo and gspo_token of its whole
    row, s. gspo_token has the value of s and the gradient of s log pi(y_t|s_t).
    """
    log_ratio = logprobs - old_logprobs
    if kind in ("gspo", "gspo_token"):
        log_ratio = masked_mean(log_ratio, completion_mask, -1)[:, None]
        log_ratio = log_ratio.expand_as(logprobs)
    if kind == "gspo_token":
        log_ratio = log_ratio.detach() + logprobs - logprobs.detach()
    return log_ratio.exp()


def select_by_entropy(entropy: Tensor, completion_mask: Tensor, share: float) -> Tensor:
    """The mask (B, T) without the tokens where there was little to decide.

    entropy  (B, T), nats, of the policy before each token
    share    of the tokens that count, the part with the highest entropy to keep:
             above 0, at most 1. Tokens on the threshold are kept, so that equal
             entropies are treated alike.
    The paper divides by the number of all tokens, not of those kept: give
    `token_weights(completion_mask) * selected` as the weights of `policy_loss`.
    Source: Wang et al. 2025, which keeps a share of 0.2.
    Raises ValueError for another share, or shapes that differ.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share!r}: give a number above 0, and at most 1")
    require_shape(completion_mask, entropy=entropy)
    counted = completion_mask.bool()
    if not counted.any():
        return completion_mask
    threshold = torch.quantile(entropy[counted], 1 - share)
    return completion_mask * (entropy >= threshold)
