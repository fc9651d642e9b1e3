"""Losses: a matrix of per-token terms, then one way to add it up."""

from tokrl.losses.aggregate import aggregate, token_weights
from tokrl.losses.kl import kl_estimate
from tokrl.losses.policy import policy_loss, select_by_entropy
from tokrl.losses.value import value_loss

__all__ = [
    "aggregate",
    "kl_estimate",
    "policy_loss",
    "select_by_entropy",
    "token_weights",
    "value_loss",
]
