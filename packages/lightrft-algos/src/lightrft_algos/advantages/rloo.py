"""REINFORCE leave-one-out (arXiv:2402.14740, section 3.2): a reward against the mean of the *other* siblings.

A_i = R_i - mean_{j != i} R_j = G / (G - 1) (R_i - mean_g)
"""

from lightrft_core.data import Batch
from lightrft_core.protocols import Advantages, World
from lightrft_core.sections import Feature, Section
from pydantic import Field

from lightrft_algos.groups import on_tokens, siblings
from lightrft_algos.whitening import finished, whiten


class RlooConfig(Section):
    """Options of `rloo`."""

    normalize: bool = False
    """Whiten over all ranks' tokens, which the paper does not."""
    clip: float | None = Field(default=None, gt=0)
    """Largest absolute advantage; by default there is no limit."""

    def ignores(self) -> frozenset[Feature]:
        """The shift always; the scale where it whitens."""
        return frozenset({"shift", "scale"}) if self.normalize else frozenset({"shift"})


def rloo(batch: Batch, world: World, *, config: RlooConfig) -> Advantages:
    """A group of one gives 0; rows that are not scored give 0 and are in no baseline."""
    stats = siblings(batch)
    advantages_B = stats.centered_B * stats.count_B / (stats.count_B - 1).clamp(min=1)
    if config.normalize:
        advantages_BT = advantages_B.unsqueeze(1).expand(batch.mask_BT.shape)
        return Advantages(finished(whiten(advantages_BT, batch, world), batch, config.clip))
    return Advantages(on_tokens(advantages_B, batch, config.clip))
