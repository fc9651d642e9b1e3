"""Losses: a matrix of per-token terms, then one way to add it up."""

from tokrl.losses.aggregate import aggregate
from tokrl.losses.kl import kl_estimate
from tokrl.losses.policy import policy_loss

__all__ = ["aggregate", "kl_estimate", "policy_loss"]
