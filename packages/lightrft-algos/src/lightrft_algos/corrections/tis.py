"""Truncated importance sampling (fengyao.notion.site/off-policy-rl): undo the gap between engine and trainer.

w = min(exp(l_old - l_engine), cap), per token, or per sequence with the sums over its tokens
"""

from typing import Literal

from lightrft_core.data import Batch
from lightrft_core.protocols import Corrected, World
from lightrft_core.sections import Section
from pydantic import Field

from lightrft_algos.corrections.gap import gap, gap_metrics, log_weights
from lightrft_algos.ratios import bounded, is_out_of_bounds


class TisConfig(Section):
    """Options of `tis`."""

    cap: float = Field(default=2.0, gt=0)
    """Largest weight."""
    level: Literal["token", "sequence"] = "token"
    """Weigh every token by its own ratio, or all tokens of a completion by its whole ratio."""


def tis(batch: Batch, world: World, *, config: TisConfig) -> Corrected:
    """Weights [B, T], 1 at tokens that do not train."""
    gap_BT = gap(batch)
    log_BT = log_weights(gap_BT, batch, config.level)
    free_BT = bounded(log_BT).exp()
    weights_BT = free_BT.clamp(max=config.cap).masked_fill(~batch.mask_BT, 1.0)
    shares = {"capped_fraction": free_BT > config.cap, "clamp_fraction": is_out_of_bounds(log_BT)}
    return Corrected(weights_BT, metrics=gap_metrics(gap_BT, shares, weights_BT, batch.mask_BT, world))
