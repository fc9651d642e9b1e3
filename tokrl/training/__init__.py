"""Training: imitation first, then reinforcement."""

from tokrl.training.lm import FitConfig, cross_entropy, evaluate, fit
from tokrl.training.masked_lm import mask_tokens
from tokrl.training.policy import Learner, train_policy
from tokrl.training.policy_config import METHODS, PolicyConfig

__all__ = [
    "METHODS",
    "FitConfig",
    "Learner",
    "PolicyConfig",
    "cross_entropy",
    "evaluate",
    "fit",
    "mask_tokens",
    "train_policy",
]
