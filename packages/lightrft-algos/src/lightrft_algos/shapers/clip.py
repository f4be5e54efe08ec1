"""Hold rewards within a band, before the baseline."""

from collections.abc import Mapping, Sequence

from lightrft_core.data import Group
from lightrft_core.protocols import Setup, World
from lightrft_core.sections import Section
from pydantic import Field


class ClipRewardConfig(Section):
    """Options of `clip`."""

    limit: float = Field(default=10.0, gt=0)
    """Largest absolute reward."""


class ClipShaper:
    """Clips every scored rollout's reward to +-limit."""

    def __init__(self, config: ClipRewardConfig, setup: Setup) -> None:
        self._limit = config.limit

    def apply(self, groups: Sequence[Group], world: World) -> Mapping[str, float]:
        """Metric: the share of scored rollouts, over all ranks, whose reward was out of the band."""
        count = clipped = 0
        for rollout in (rollout for group in groups for rollout in group.rollouts):
            if rollout.reward is None:
                continue
            present = rollout.reward if rollout.shaped_reward is None else rollout.shaped_reward
            rollout.shaped_reward = min(max(present, -self._limit), self._limit)
            count, clipped = count + 1, clipped + (rollout.shaped_reward != present)
        total, hit = world.sum([count, clipped])
        return {"reward/clipped_fraction": hit / max(total, 1.0)}
