"""Estimates of the divergence between two policies from sampled tokens."""

from torch import Tensor

KINDS = ("k1", "k2", "k3")


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: str = "k1") -> Tensor:
    """Per-token estimates of KL(pi, pi_ref) from tokens sampled from pi, nats.

    logprobs, ref_logprobs  (B, T): the sampled tokens under pi and under pi_ref;
                            finite where masked, too, as NaN would spread by the
                            gradient (`token_logprobs` gives 0 there)
    With log r = ref_logprobs - logprobs:
    k1  -log r            unbiased, may be negative
    k2  (log r)^2 / 2     biased, never negative
    k3  r - 1 - log r     unbiased, never negative
    Returns (B, T). Source: Schulman, 'Approximating KL divergence', 2020.
    As a reward, an estimate is a number. As a term of the loss it is its gradient
    that counts, and in expectation over the next token that is, for k1, 0; for k2,
    the gradient of KL(pi, pi_ref); for k3, the gradient of KL(pi_ref, pi).
    All three leave out that earlier tokens lead to states where the policies
    differ more: k1 in the reward, summed by reward-to-go, has it all.
    Raises ValueError for another kind, or shapes that differ.
    """
    if logprobs.shape != ref_logprobs.shape:
        raise ValueError(
            f"logprobs has shape {tuple(logprobs.shape)}, ref_logprobs "
            f"{tuple(ref_logprobs.shape)}: they must be equal"
        )
    log_r = ref_logprobs - logprobs
    if kind == "k1":
        return -log_r
    if kind == "k2":
        return log_r.square() / 2
    if kind == "k3":
        return log_r.expm1() - log_r
    raise ValueError(f"kind={kind!r}: give one of {', '.join(KINDS)}")
