"""Estimates of the divergence between two policies from sampled tokens."""

from torch import Tensor

KINDS = ("k1", "k2", "k3")


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: str = "k1") -> Tensor:
    """Per-token estimates of KL(pi, pi_ref) from tokens sampled from pi, nats.

    logprobs, ref_logprobs  (B, T): the sampled tokens under pi and under pi_ref
    With log r = ref_logprobs - logprobs:
    k1  -log r            unbiased, may be negative
    k2  (log r)^2 / 2     biased, never negative
    k3  r - 1 - log r     unbiased, never negative
    Returns (B, T). Source: Schulman, 'Approximating KL divergence', 2020.
    Raises ValueError for another kind.
    """
    log_r = ref_logprobs - logprobs
    if kind == "k1":
        return -log_r
    if kind == "k2":
        return log_r.square() / 2
    if kind == "k3":
        return log_r.expm1() - log_r
    raise ValueError(f"kind={kind!r}: give one of {', '.join(KINDS)}")
