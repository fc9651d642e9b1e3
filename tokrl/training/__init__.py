"""Training: imitation first, then reinforcement."""

from tokrl.training.lm import FitConfig, cross_entropy, evaluate, fit
from tokrl.training.masked_lm import mask_tokens
from tokrl.training.policy import PolicyConfig, train_policy

__all__ = [
    "FitConfig",
    "PolicyConfig",
    "cross_entropy",
    "evaluate",
    "fit",
    "mask_tokens",
    "train_policy",
]
