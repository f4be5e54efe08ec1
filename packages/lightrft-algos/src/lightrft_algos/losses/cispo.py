"""CISPO (MiniMax-M1, arXiv:2506.13585, equations 4-5): the importance weight is clipped, no token loses its gradient.

L_t = -sg[clip(r, 1 - low, 1 + high)] A l,  r = exp(l - l_old)
"""

from lightrft_core.data import LossInputs, LossOutput
from lightrft_core.sections import LossSection
from pydantic import Field

from lightrft_algos.ratios import bounded, log_ratio, ratio_metrics


class CispoConfig(LossSection):
    """Options of `cispo`."""

    clip_low: float = Field(default=1.0, ge=0, le=1)
    """The weight is at least 1 less this; the paper has no lower bound, which is 1."""
    clip_high: float = Field(default=4.0, ge=0)
    """The weight is at most 1 plus this; the paper tunes it, ScaleRL (arXiv:2510.13786) bounds the weight by 4 to 8."""


def cispo(inputs: LossInputs, *, config: CispoConfig) -> LossOutput:
    """Per token. Metrics: those of `ratio_metrics`, and `clip_fraction` (tokens whose weight was clipped)."""
    log_ratio_BT = log_ratio(inputs)
    ratio_BT = bounded(log_ratio_BT.detach()).exp()
    weight_BT = ratio_BT.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
    logprobs_BT = inputs.logprobs_BT.masked_fill(~inputs.mask_BT, 0.0)
    clip_fraction_BT = (weight_BT != ratio_BT).to(ratio_BT.dtype)
    values_BT = -weight_BT * inputs.advantages_BT * logprobs_BT
    return LossOutput(values_BT, {**ratio_metrics(log_ratio_BT), "clip_fraction": clip_fraction_BT})
