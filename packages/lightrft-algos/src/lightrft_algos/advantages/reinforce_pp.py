"""REINFORCE++ (arXiv:2501.03262, equations 8-9): plain returns, whitened over the global batch.

    A_t = whiten(sum_{s >= t} gamma^(s - t) r_s),  r_s = -beta k1_s, R added at the last trained token

There is no group: one completion a prompt is enough. The KL belongs into the reward (`kl: {use: k1, place: reward}`).
"""

from lightrft_core.data import Batch
from lightrft_core.protocols import Advantages, World
from lightrft_core.sections import Feature, Fraction, Section
from pydantic import Field

from lightrft_algos.advantages.reinforce import discounted, token_rewards
from lightrft_algos.whitening import finished, whiten


class ReinforcePPConfig(Section):
    """Options of `reinforce_pp`."""

    gamma: Fraction = 1.0
    """Discount per token; 1 gives every token the whole return."""
    clip: float | None = Field(default=None, gt=0)
    """Largest absolute advantage, after whitening; by default there is no limit."""

    def ignores(self) -> frozenset[Feature]:
        """The scale; the shift too, unless it is discounted, which shifts tokens differently."""
        return frozenset({"shift", "scale"}) if self.gamma == 1 else frozenset({"scale"})


def reinforce_pp(batch: Batch, world: World, *, config: ReinforcePPConfig) -> Advantages:
    """Rows that are not scored give 0 and count in no statistic; equal returns everywhere give 0."""
    returns_BT = discounted(token_rewards(batch), batch.mask_BT, config.gamma)
    return Advantages(finished(whiten(returns_BT, batch, world), batch, config.clip))
