"""What distinguishes one policy-optimisation method from another: settings."""

from dataclasses import dataclass
from numbers import Real
from typing import Any

from tokrl.advantages import SCALES
from tokrl.losses.aggregate import MODES
from tokrl.losses.kl import KINDS as KL_KINDS
from tokrl.losses.policy import KINDS

ADVANTAGES = ("returns", "leave_one_out", "rloo", "group", "gae")
PLACES = ("reward", "loss")


@dataclass(frozen=True)
class PolicyConfig:
    """How a policy is trained. The methods by name: `PolicyConfig.of("grpo", ...)`.

    Experience
    steps             rollouts to learn from, one after the other
    prompts_per_step  prompts drawn for each
    group_size        completions of each prompt
    max_new_tokens    longest completion
    temperature       at which completions are sampled and scored
    resample          how often the groups of a rollout whose completions all got the
                      same reward are drawn anew, with other prompts (DAPO)

    Credit
    advantage         returns: reward-to-go; leave_one_out: reward-to-go minus the mean
                      outcome of the group's others; rloo: outcome minus that mean, on
                      every token; group: outcome minus the group's mean, scaled;
                      gae: generalised advantage estimation, with a critic
    gamma             discount of later rewards: 1 credits a token with all that
                      follows it, 0 with its own reward alone
    gae_lambda        how far GAE looks beyond the critic: 0 one token, 1 to the end
    scale             what `group` divides by: std of the group, of the batch, none
    whiten            shift and scale advantages to mean 0 and variance 1 over a rollout

    Loss
    kind              reinforce, ppo, gspo, gspo_token, cispo: see `policy_loss`
    clip_low          how far a ratio may fall below 1, ...
    clip_high         ... and rise above it, before the gradient is cut
    aggregate         how per-token losses add up: token_mean, sequence_mean,
                      constant (over max_new_tokens)
    kl_coef           price of one nat of KL to the reference
    kl_in             where it is paid: reward, each token's lowered by
                      kl_coef log(pi / pi_ref) (Ziegler et al. 2019); or loss
    kl_kind           the estimate for the loss: k1, k2, k3. Where advantages are
                      divided by a standard deviation and the loss pays the KL, a nat
                      costs kl_coef times that deviation, in units of the reward
    entropy_coef      bonus for a nat of entropy per token
    entropy_share     share of the tokens, those of the highest entropy, that the policy
                      learns from (Wang et al. 2025)

    Steps
    epochs            passes over each rollout
    minibatches       updates in each pass, each on its part of the rollout
    micro_batch       rows in one backward pass, 0 for all: less memory, the same update
    skip_idle         leave rows whose advantages are all 0 out of the update: the same
                      gradient for less work. Metrics are then means over the others.
                      No row is idle where entropy, KL or a critic add to the loss
    learning_rate     AdamW's, constant
    clip_grad         largest norm of the gradient
    value_coef        weight of the critic's loss
    value_clip        how far a value may move in one rollout's updates; None: any
    checkpoint_every  rollouts between checkpoints; 0 for one at the end
    """

    steps: int = 100
    prompts_per_step: int = 1
    group_size: int = 64
    max_new_tokens: int = 64
    temperature: float = 1.0
    resample: int = 0
    advantage: str = "leave_one_out"
    gamma: float = 1.0
    gae_lambda: float = 0.95
    scale: str = "std"
    whiten: bool = False
    kind: str = "reinforce"
    clip_low: float = 0.2
    clip_high: float = 0.2
    aggregate: str = "constant"
    kl_coef: float = 0.0
    kl_in: str = "reward"
    kl_kind: str = "k3"
    entropy_coef: float = 0.0
    entropy_share: float = 1.0
    epochs: int = 1
    minibatches: int = 1
    micro_batch: int = 0
    skip_idle: bool = False
    learning_rate: float = 5e-4
    clip_grad: float = 1.0
    value_coef: float = 0.5
    value_clip: float | None = 0.2
    checkpoint_every: int = 0

    def __post_init__(self):
        for name in ("steps", "prompts_per_step", "group_size", "max_new_tokens",
                     "epochs", "minibatches"):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: give a whole number of at least 1")
        for name in ("resample", "micro_batch", "checkpoint_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{name}={value!r}: give a whole number of at least 0")
        for name in ("learning_rate", "temperature", "clip_grad"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not value > 0:
                raise ValueError(f"{name}={value!r}: give a number above 0")
        for name in ("gamma", "gae_lambda"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= value <= 1:
                raise ValueError(f"{name}={value!r}: give a number from 0 to 1")
        for name in ("kl_coef", "entropy_coef", "value_coef", "clip_low", "clip_high"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not value >= 0:
                raise ValueError(f"{name}={value!r}: give a number of at least 0")
        share = self.entropy_share
        if not isinstance(share, Real) or not 0 < share <= 1:
            raise ValueError(
                f"entropy_share={share!r}: give a number above 0, and at most 1"
            )
        clip = self.value_clip
        if clip is not None and (not isinstance(clip, Real) or not clip > 0):
            raise ValueError(f"value_clip={clip!r}: give a number above 0, or None")
        for name, allowed in (
            ("advantage", ADVANTAGES), ("scale", SCALES), ("kind", KINDS),
            ("aggregate", MODES), ("kl_in", PLACES), ("kl_kind", KL_KINDS),
        ):  # fmt: skip
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: give one of {', '.join(allowed)}")
        if self.kind == "cispo" and self.clip_high < 1:
            raise ValueError(
                f"clip_high={self.clip_high}: with kind 'cispo' it caps the ratio "
                "itself, give at least 1, such as 5"
            )
        rows = self.prompts_per_step * self.group_size
        if self.minibatches > rows:
            raise ValueError(
                f"minibatches={self.minibatches}: a rollout has {rows} completions only"
            )
        if self.advantage in ("leave_one_out", "rloo", "group") and self.group_size < 2:
            raise ValueError(
                f"group_size={self.group_size}: the advantage {self.advantage!r} needs "
                "at least 2"
            )

    @classmethod
    def of(cls, method: str, **settings: Any) -> "PolicyConfig":
        """The settings of a method, by its name in the literature, and your own.

        method    reinforce, rloo, ppo, grpo, dr_grpo, dapo, gspo, cispo
        settings  fields that the method leaves open, or that you want otherwise
        Raises ValueError for another method.
        """
        if method not in METHODS:
            raise ValueError(f"method={method!r}: give one of {', '.join(METHODS)}")
        return cls(**{**METHODS[method], **settings})


GRPO = {"advantage": "group", "kind": "ppo", "aggregate": "sequence_mean",
        "kl_in": "loss"}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    # Williams 1992
    "reinforce": {"advantage": "returns", "kind": "reinforce"},
    # Ahmadian et al. 2024
    "rloo": {"advantage": "rloo", "kind": "reinforce"},
    # Schulman et al. 2017
    "ppo": {"advantage": "gae", "kind": "ppo", "aggregate": "token_mean", "epochs": 2,
            "minibatches": 2, "whiten": True},
    # Shao et al. 2024
    "grpo": GRPO,
    # Liu et al. 2025
    "dr_grpo": {**GRPO, "scale": "none", "aggregate": "constant"},
    # Yu et al. 2025; its penalty on long completions is a reward, `overlong_penalty`
    "dapo": {**GRPO, "aggregate": "token_mean", "clip_high": 0.28, "resample": 3},
    # Zheng et al. 2025; the ratio is a mean over a sequence, so the clip is narrow
    "gspo": {**GRPO, "kind": "gspo", "clip_low": 3e-4, "clip_high": 4e-4},
    # MiniMax 2025; clip_high caps the weight itself
    "cispo": {**GRPO, "kind": "cispo", "aggregate": "token_mean", "clip_high": 5.0},
}  # fmt: skip
