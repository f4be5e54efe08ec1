"""The clipped policy-gradient loss of PPO (arXiv:1707.06347, equation 7), used by GRPO, DAPO and Dr.GRPO.

    L_t = -min(r A, clip(r, 1 - low, 1 + high) A),  r = exp(l - l_old)

With a dual clip c (arXiv:1912.09729, equation 5) a token of negative advantage loses at most -c A.
"""

from lightrft_core.data import LossInputs, LossOutput
from lightrft_core.sections import LossSection
from pydantic import Field

from lightrft_algos.ratios import bounded, log_ratio, ratio_metrics


class ClipConfig(LossSection):
    """Options of `clip`."""

    clip_low: float = Field(default=0.2, ge=0, le=1)
    """How far below 1 the ratio of new to old probability still counts."""
    clip_high: float = Field(default=0.2, ge=0)
    """How far above 1 it counts; DAPO takes 0.28."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bound of the ratio where the advantage is negative; by default there is none."""


def clip(inputs: LossInputs, *, config: ClipConfig) -> LossOutput:
    """Per token. Log-ratios are held within +-20, so that a far-off token costs a finite number and has no gradient.

    Metrics: those of `ratio_metrics`, and `clip_fraction` (tokens whose gradient the clip removed).
    """
    advantages_BT = inputs.advantages_BT
    log_ratio_BT = log_ratio(inputs)
    ratio_BT = bounded(log_ratio_BT).exp()
    free_BT = -ratio_BT * advantages_BT
    clipped_BT = -ratio_BT.clamp(1.0 - config.clip_low, 1.0 + config.clip_high) * advantages_BT
    values_BT = free_BT.maximum(clipped_BT)
    if config.dual_clip is not None:
        limited_BT = values_BT.minimum(-config.dual_clip * advantages_BT)
        values_BT = limited_BT.where(advantages_BT < 0, values_BT)
    clip_fraction_BT = (clipped_BT > free_BT).to(ratio_BT.dtype)
    return LossOutput(values_BT, {**ratio_metrics(log_ratio_BT), "clip_fraction": clip_fraction_BT})
