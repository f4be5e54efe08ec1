"""A masking band: what the engine found far likelier or far less likely than the trainer does is left out.

    tokens with low <= w <= high train, w = exp(l_old - l_engine); the others, or their whole completions, do not

`level: token` is IcePop's mask (ringtech.notion.site/icepop), `sequence` TRL's `sequence_mask`, `geometric` takes the
mean log-ratio of a completion, so that long ones are not left out for their length. With `weigh` those that stay are
weighted by w, too.
"""

from typing import Self

from lightrft_core.data import Batch
from lightrft_core.protocols import Corrected, World
from lightrft_core.sections import Section
from pydantic import Field, model_validator

from lightrft_algos.corrections.gap import Level, gap, gap_metrics, log_weights
from lightrft_algos.ratios import bounded, is_out_of_bounds


class BandConfig(Section):
    """Options of `band`."""

    level: Level = "token"
    """Judge every token, or whole completions by the product or the geometric mean of their tokens' ratios."""
    low: float = Field(default=0.5, ge=0, le=1)
    """Smallest ratio that stays."""
    high: float = Field(default=5.0, ge=1)
    """Largest ratio that stays."""
    weigh: bool = True
    """Weigh what stays by its ratio; off: by 1."""

    @model_validator(mode="after")
    def _band_is_wide(self) -> Self:
        if self.low == self.high:
            raise ValueError("low and high are both 1: almost nothing would train")
        return self


def band(batch: Batch, world: World, *, config: BandConfig) -> Corrected:
    """A narrower mask: what is left out counts in no mean. `correction/masked_fraction` is its share."""
    gap_BT = gap(batch)
    log_BT = log_weights(gap_BT, batch, config.level)
    free_BT = bounded(log_BT).exp()
    stays_BT = (free_BT >= config.low) & (free_BT <= config.high)
    kept_BT = batch.mask_BT & stays_BT
    weights_BT = (free_BT if config.weigh else free_BT.new_ones(free_BT.shape)).masked_fill(~kept_BT, 0.0)
    shares = {"masked_fraction": ~stays_BT, "clamp_fraction": is_out_of_bounds(log_BT)}
    metrics = gap_metrics(gap_BT, shares, weights_BT, batch.mask_BT, world)
    return Corrected(weights_BT.masked_fill(~batch.mask_BT, 1.0), kept_BT, metrics)
