"""Training: imitation first, then reinforcement."""

from tokrl.training.lm import FitConfig, cross_entropy, evaluate, fit
from tokrl.training.policy import PolicyConfig, train_policy

__all__ = [
    "FitConfig",
    "PolicyConfig",
    "cross_entropy",
    "evaluate",
    "fit",
    "train_policy",
]
