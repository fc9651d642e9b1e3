"""Rewards: callables that judge completions, in TRL's calling convention.

A reward is called as `reward(prompts, completions, completion_ids, **columns)` with
lists of texts and of id lists. A sequence reward returns one number per completion;
a token reward returns a list of numbers per completion, one for each token, with
None from the point on where it judges no more (the episode has ended there).
"""

from tokrl.rewards.calling import (
    Reward,
    RewardError,
    as_sequence_reward,
    judge,
    token_reward_matrix,
)
from tokrl.rewards.composed import CombinedReward, PotentialShaping
from tokrl.rewards.examples import error_examples, spoilt
from tokrl.rewards.learned import LearnedReward, RewardModel, error_loss
from tokrl.rewards.pieces import token_bytes
from tokrl.rewards.plain import (
    EndingReward,
    LengthReward,
    MentionReward,
    OverlongReward,
    overlong_penalty,
)
from tokrl.rewards.truth import FluencyReward, ValidityReward, possible_bytes

__all__ = [
    "CombinedReward",
    "EndingReward",
    "FluencyReward",
    "LearnedReward",
    "LengthReward",
    "MentionReward",
    "OverlongReward",
    "PotentialShaping",
    "Reward",
    "RewardError",
    "RewardModel",
    "ValidityReward",
    "as_sequence_reward",
    "error_examples",
    "error_loss",
    "judge",
    "overlong_penalty",
    "possible_bytes",
    "spoilt",
    "token_bytes",
    "token_reward_matrix",
]
