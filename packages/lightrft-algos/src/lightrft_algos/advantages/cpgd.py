"""CPGD's advantages (arXiv:2505.12504, section 4.2): a reward against its siblings' mean, weighted per group.

    A_i = w_g (R_i - mean_g)
    weight std:          w_g = 1 / (std_g + eps), std with n-1: GRPO's
    weight equal:        w_g = 1
    weight clip_filter:  w_g = min(groups / groups whose rewards differ, max_weight)

`clip_filter` weighs as if groups without signal had been filtered out and drawn anew, up to a bound. Both counts are
those of all ranks.
"""

from collections.abc import Mapping
from typing import Literal

from lightrft_core.data import Batch, Tensor
from lightrft_core.protocols import Advantages, World
from lightrft_core.sections import Feature, Idle, Section
from pydantic import Field

from lightrft_algos.advantages.group_norm import EPS
from lightrft_algos.groups import Siblings, on_tokens, siblings


class CpgdAdvantageConfig(Section):
    """Options of `cpgd`."""

    weight: Literal["std", "equal", "clip_filter"] = "std"
    """What a group's centred rewards are multiplied by: 1 / spread, 1, or what filtering would make of it."""
    max_weight: float = Field(default=3.0, ge=1)
    """Bound of `clip_filter`; the default is that of the authors' code."""
    clip: float | None = Field(default=None, gt=0)
    """Largest absolute advantage; by default there is no limit."""

    def idle(self) -> Mapping[str, Idle]:
        """`max_weight` belongs to `clip_filter`."""
        return {} if self.weight == "clip_filter" else {"max_weight": Idle("weight", "only clip_filter has a bound.")}

    def ignores(self) -> frozenset[Feature]:
        """The shift always; the scale where it divides by a spread."""
        return frozenset({"shift", "scale"}) if self.weight == "std" else frozenset({"shift"})


def cpgd(batch: Batch, world: World, *, config: CpgdAdvantageConfig) -> Advantages:
    """Equal rewards and a group of one give exactly 0; rows that are not scored give 0 and count in no statistic."""
    stats = siblings(batch)
    advantages_B = stats.centered_B
    if config.weight == "std":
        advantages_B = advantages_B / (stats.std(batch.group_B) + EPS)
    elif config.weight == "clip_filter":
        advantages_B = advantages_B * min(_inverse_share(stats, batch.scored_B, world), config.max_weight)
    return Advantages(on_tokens(advantages_B, batch, config.clip))


def _inverse_share(stats: Siblings, scored_B: Tensor, world: World) -> float:
    """Groups over groups whose rewards differ, of all ranks; infinite where none differs."""
    share_B = scored_B.double() / stats.count_B.clamp(min=1)  # the scored rows of a group add up to 1
    groups, differing = world.sum([float(share_B.sum()), float(share_B.masked_fill(stats.is_constant_B, 0.0).sum())])
    return round(groups) / round(differing) if differing >= 0.5 else float("inf")
