"""Rewards made of rewards: weighted sums, and shaping that changes no optimum."""

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real

from tokrl.rewards.calling import Reward, judge, on_tokens

# What training records of a whole reward, under reward/.
TAKEN = ("mean", "std", "frac_zero_std")


class CombinedReward:
    """Token reward: a weighted sum of rewards, of tokens and of sequences alike.

    parts  {name: (reward, weight)}; the names mean, std and frac_zero_std are taken

    The first part that ends an episode (None) ends it for all: what others give to
    later tokens is lost. A sequence reward is paid on the last token that is left, so
    that it is never lost; it has read the whole completion, though.

    After each call `metrics` holds {"reward/<name>": mean over the completions of what
    the part paid, unweighted}.
    Raises ValueError for no parts, parts that are no such pairs, a name that is taken
    or a weight that is not finite; when called, a RewardError that names the part's
    reward, as `judge` does.
    """

    __name__ = "combined"

    def __init__(self, parts: Mapping[str, tuple[Reward, float]]):
        if not parts:
            raise ValueError("parts is empty: give at least one reward")
        for name, part in dict(parts).items():
            if name in TAKEN:
                raise ValueError(
                    f"parts has the name {name!r}: reward/{name} is that of the whole, "
                    "give another"
                )
            pair = isinstance(part, (tuple, list)) and len(part) == 2
            if not pair or not callable(part[0]) or not isinstance(part[1], Real):
                raise ValueError(f"parts[{name!r}]={part!r}: give (reward, weight)")
            weight = part[1]
            if not math.isfinite(weight):
                raise ValueError(f"parts[{name!r}] has weight {weight!r}: not finite")
        self.parts = dict(parts)
        self.metrics: dict[str, float] = {}

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        **columns,
    ) -> list[list[float | None]]:
        judgements = {
            name: judge(reward, prompts, completions, completion_ids, **columns)
            for name, (reward, _) in self.parts.items()
        }
        paid = dict.fromkeys(self.parts, 0.0)
        rewards = []
        for i, ids in enumerate(completion_ids):
            row = [judgement[i] for judgement in judgements.values()]
            end = min([len(ids), *(len(j) for j in row if isinstance(j, list))])
            added = [0.0] * end
            for (name, (_, weight)), judgement in zip(
                self.parts.items(), row, strict=True
            ):
                values = on_tokens(judgement, end)[:end]
                added = [a + weight * b for a, b in zip(added, values, strict=True)]
                paid[name] += sum(values)
            rewards.append([*added, *[None] * (len(ids) - end)])
        count = max(len(completion_ids), 1)
        self.metrics = {f"reward/{name}": total / count for name, total in paid.items()}
        return rewards


class PotentialShaping:
    """Token reward: another reward, helped by a potential of the text so far.

    r'_t = r_t + gamma Phi(s_{t+1}) - Phi(s_t), and Phi = 0 where the episode ends.
    The additions telescope: every (discounted) return changes by -Phi(s_0), the same
    for all completions of a prompt. So no policy gains on another and the optimum
    stays, while good steps are paid at once. It holds only with Phi = 0 at the end,
    however the text ends: else whatever the last state is worth is paid on top.

    potential  (prompt, ids so far) -> Phi; asked for each state s_0 .. s_{T-1}
    reward     a token or sequence reward
    gamma      the one that returns are computed with
    Source: Ng, Harada and Russell 1999, theorem 1.
    """

    __name__ = "shaped"

    def __init__(
        self,
        potential: Callable[[str, Sequence[int]], float],
        reward: Reward,
        gamma: float = 1.0,
    ):
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma={gamma!r}: give a number from 0 to 1")
        self.potential, self.reward, self.gamma = potential, reward, gamma

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        **columns,
    ) -> list[list[float | None]]:
        judgements = judge(self.reward, prompts, completions, completion_ids, **columns)
        rewards = []
        for prompt, ids, judgement in zip(
            prompts, completion_ids, judgements, strict=True
        ):
            row = on_tokens(judgement, len(ids))
            phi = [self.potential(prompt, ids[:t]) for t in range(len(row))] + [0.0]
            shaped = [
                r + self.gamma * after - before
                for r, before, after in zip(row, phi[:-1], phi[1:], strict=True)
            ]
            rewards.append([*shaped, *[None] * (len(ids) - len(row))])
        return rewards
