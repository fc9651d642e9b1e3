"""The loss whose gradient improves a policy."""

from torch import Tensor

from tokrl.losses.aggregate import aggregate as add_up
from tokrl.losses.kl import kl_estimate
from tokrl.masking import masked_mean

KINDS = ("reinforce",)


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    completion_mask: Tensor,
    kind: str = "reinforce",
    aggregate: str = "token_mean",
    max_length: int | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Minus the advantage-weighted log-probs of the sampled tokens.

    logprobs         (B, T), nats, under the policy being trained; carries gradients
    old_logprobs     (B, T), under the policy that sampled the tokens
    advantages       (B, T); no gradient flows through them
    completion_mask  (B, T), 1 on the tokens that count
    kind             reinforce: -A_t log pi(y_t | s_t), Williams 1992
    aggregate        how the matrix is added up, see `tokrl.losses.aggregate`
    Returns the loss, a scalar, and metrics: `approx_kl`, the drift from the sampling
    policy per token (k3, nats).
    """
    if kind != "reinforce":
        raise ValueError(f"kind={kind!r}: give one of {', '.join(KINDS)}")
    matrix = -advantages.detach() * logprobs
    loss = add_up(matrix, completion_mask, aggregate, max_length)
    drift = kl_estimate(old_logprobs, logprobs.detach(), "k3")
    return loss, {"approx_kl": float(masked_mean(drift, completion_mask))}
