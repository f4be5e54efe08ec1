"""Rewards in units of their running standard deviation, over everything scored so far on all ranks.

    R' = R / (std + eps), or (R - mean) / (std + eps) with `minus_mean`,  std with n

Counts, means and squares of a step are added to those before (Chan et al. 1979) *before* the step is normalised, so the
first step is, too. The state goes into checkpoints. This scales rewards before the baseline; it is not the
normalisation of advantages.
"""

import math
from collections.abc import Mapping, Sequence

from lightrft_core.data import Group
from lightrft_core.protocols import Json, Setup, World
from lightrft_core.sections import Feature, Section
from pydantic import Field

SAME = 1e-9  # a spread this small against the mean is rounding: nothing has differed yet


class RunningNormConfig(Section):
    """Options of `running_norm`."""

    minus_mean: bool = False
    """Subtract the running mean, too; a group baseline does so anyway."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the standard deviation."""

    def undone_by(self, ignored: frozenset[Feature]) -> Mapping[str, str]:
        """All of it where the advantage divides by a spread; `minus_mean` where it subtracts a mean."""
        is_shift_seen = self.minus_mean and "shift" not in ignored
        if "scale" in ignored and not is_shift_seen:
            why = "the advantage divides by the spread of the rewards, whatever their scale"
            return {"": f"{why}; rloo, reinforce and group_norm with std: none keep it."}
        return {"minus_mean": "the advantage subtracts a mean anyway."} if "shift" in ignored else {}


class RunningNorm:
    """Keeps count, mean and summed squares of all scored rewards as they came to it."""

    def __init__(self, config: RunningNormConfig, setup: Setup) -> None:
        self._config = config
        self._count = self._mean = self._squares = 0.0

    def apply(self, groups: Sequence[Group], world: World) -> Mapping[str, float]:
        """Metrics: running mean and standard deviation. While nothing has differed yet the divisor is 1."""
        scored = [rollout for group in groups for rollout in group.rollouts if rollout.reward is not None]
        present = [_present(rollout.reward, rollout.shaped_reward) for rollout in scored]
        self._add(present, world)
        mean, std = self._mean, self._std()
        shift = mean if self._config.minus_mean else 0.0
        divisor = 1.0 if std <= SAME * abs(mean) else std + self._config.eps
        for rollout, value in zip(scored, present, strict=True):
            rollout.shaped_reward = (value - shift) / divisor
        return {"reward/running_mean": mean, "reward/running_std": std}

    def state_dict(self) -> dict[str, Json]:
        """The three sums."""
        return {"count": self._count, "mean": self._mean, "squares": self._squares}

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Go on from there."""
        self._count, self._mean, self._squares = (float(state[name]) for name in ("count", "mean", "squares"))

    def _add(self, values: Sequence[float], world: World) -> None:
        count, total = world.sum([len(values), math.fsum(values)])
        if not count:
            return
        mean = total / count
        squares = world.sum([math.fsum((value - mean) ** 2 for value in values)])[0]
        whole, gap = self._count + count, mean - self._mean
        self._squares += squares + gap**2 * self._count * count / whole
        self._mean += gap * count / whole
        self._count = whole

    def _std(self) -> float:
        return math.sqrt(self._squares / self._count) if self._count else 0.0


def _present(reward: float | None, shaped: float | None) -> float:
    """The reward as the shapers before have left it."""
    value = reward if shaped is None else shaped
    assert value is not None, "only scored rollouts are shaped"
    return value
