"""Group-relative advantages: a reward against its siblings', in units of their spread.

    A_i = (R_i - mean_g) / (std + eps),  std with n-1

`std: group` is GRPO (arXiv:2402.03300, section 4.1.2), `none` is Dr.GRPO (arXiv:2503.20783, section 3.2), `batch` is
Lite PPO (arXiv:2508.08221, section 4.2), where the spread is that of all ranks' rewards.
"""

from collections.abc import Mapping
from typing import Literal, Self

from lightrft_core.data import Batch, Tensor
from lightrft_core.protocols import Advantages, World
from lightrft_core.sections import Feature, Idle, Section
from pydantic import Field, model_validator

from lightrft_algos.groups import Siblings, on_tokens, siblings
from lightrft_algos.whitening import finished, whiten

EPS = 1e-6
NEGLIGIBLE = 1e-3  # added to a spread of rewards near 1, so little changes nothing that is seen


class GroupNormConfig(Section):
    """Options of `group_norm`."""

    std: Literal["group", "batch", "none"] = "group"
    """Divide by the standard deviation of the group, of the whole batch over all ranks, or not at all."""
    eps: float = Field(default=EPS, gt=0)
    """Added to the standard deviation; TRL takes 1e-4."""
    normalize: bool = False
    """Whiten over all ranks' tokens instead; only with `std: none`, for one normalisation is enough."""
    clip: float | None = Field(default=None, gt=0)
    """Largest absolute advantage; by default there is no limit."""

    def idle(self) -> Mapping[str, Idle]:
        """`eps` belongs to a standard deviation."""
        return {"eps": Idle("std", "std: none divides by nothing.")} if self.std == "none" else {}

    def ignores(self) -> frozenset[Feature]:
        """The shift always; the scale where it divides by a spread, unless `eps` counts beside that."""
        is_scaled = self.normalize or (self.std != "none" and self.eps <= NEGLIGIBLE)
        return frozenset({"shift", "scale"}) if is_scaled else frozenset({"shift"})

    @model_validator(mode="after")
    def _normalise_once(self) -> Self:
        if self.normalize and self.std != "none":
            raise ValueError(f"normalize would be a second normalisation: std: {self.std} is one. Set std: none")
        return self


def group_norm(batch: Batch, world: World, *, config: GroupNormConfig) -> Advantages:
    """Equal rewards and a group of one give exactly 0; rows that are not scored give 0 and count in no statistic."""
    stats = siblings(batch)
    advantages_B = stats.centered_B
    if config.std == "group":
        advantages_B = advantages_B / (stats.std(batch.group_B) + config.eps)
    elif config.std == "batch":
        advantages_B = advantages_B / (_batch_std(stats, batch.scored_B, world) + config.eps)
    if config.normalize:
        centered_BT = advantages_B.unsqueeze(1).expand(batch.mask_BT.shape)
        return Advantages(finished(whiten(centered_BT, batch, world), batch, config.clip))
    return Advantages(on_tokens(advantages_B, batch, config.clip))


def _batch_std(stats: Siblings, scored_B: Tensor, world: World) -> float:
    """Standard deviation of all scored rewards of all ranks, in two passes."""
    total, count = world.sum([float(stats.rewards_B.sum()), float(scored_B.sum())])
    from_mean_B = (stats.rewards_B - total / max(count, 1.0)).masked_fill(~scored_B, 0.0)
    squares = world.sum([float((from_mean_B**2).sum())])[0]
    return float((squares / max(count - 1.0, 1.0)) ** 0.5)
