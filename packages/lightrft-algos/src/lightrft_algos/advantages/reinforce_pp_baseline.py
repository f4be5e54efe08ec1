"""REINFORCE++-baseline (arXiv:2501.03262, section 3.3): less the siblings' mean, then whitened over the global batch.

    A_i = whiten(R_i - mean_g)

The group centres, the batch scales: an easy and a hard prompt weigh by how much their rewards differ. The KL belongs
into the loss, by k2.
"""

from lightrft_core.data import Batch
from lightrft_core.protocols import Advantages, World
from lightrft_core.sections import Feature, Section
from pydantic import Field

from lightrft_algos.groups import siblings
from lightrft_algos.whitening import finished, whiten


class ReinforcePPBaselineConfig(Section):
    """Options of `reinforce_pp_baseline`."""

    clip: float | None = Field(default=None, gt=0)
    """Largest absolute advantage, after whitening; by default there is no limit."""

    def ignores(self) -> frozenset[Feature]:
        """Both: it subtracts a mean, and divides by a spread."""
        return frozenset({"shift", "scale"})


def reinforce_pp_baseline(batch: Batch, world: World, *, config: ReinforcePPBaselineConfig) -> Advantages:
    """Every token weighs alike in the whitening, so long completions weigh more. Rows that are not scored give 0."""
    centered_BT = siblings(batch).centered_B.unsqueeze(1).expand(batch.mask_BT.shape)
    return Advantages(finished(whiten(centered_BT, batch, world), batch, config.clip))
