"""GMPO (arXiv:2507.20673, equation 4 and algorithm 1): the geometric mean of clipped token ratios.

    L = -A exp(mean_t e_t),  e_t = sgn min(sgn d_t, sgn clip(d_t, -low, high)),  d = l - l_old, sgn = sign(A)

One outlying token moves a geometric mean little, so the clip, in log space, can be wide.
"""

from collections.abc import Mapping

from lightrft_core.data import LossInputs, LossOutput
from lightrft_core.sections import Idle, LossSection
from pydantic import Field

from lightrft_algos.ratios import bounded, is_out_of_bounds, log_ratio, ratio_metrics, token_mean


class GmpoConfig(LossSection):
    """Options of `gmpo`."""

    clip_low: float = Field(default=0.4, ge=0)
    """How far below 0 the log-ratio of a token still counts."""
    clip_high: float = Field(default=0.4, ge=0)
    """How far above 0 it counts."""

    def idle(self) -> Mapping[str, Idle]:
        """One value per sequence is averaged over sequences: there are no tokens to aggregate."""
        return dict.fromkeys(("aggregation", "token_budget"), Idle("use", "one value per sequence is averaged."))


def gmpo(inputs: LossInputs, *, config: GmpoConfig) -> LossOutput:
    """Per sequence, with the mean of its tokens' advantages. The mean of the log-ratios is held within +-20.

    Metrics per token: those of `ratio_metrics`, and `clip_fraction` (tokens whose gradient the clip removed); per
    sequence: `clamp_fraction` (those whose mean was held).
    """
    advantages_B = token_mean(inputs.advantages_BT, inputs)
    sign_B1 = advantages_B.sign().unsqueeze(1)
    log_ratio_BT = log_ratio(inputs)
    free_BT = sign_B1 * log_ratio_BT
    held_BT = sign_B1 * log_ratio_BT.clamp(-config.clip_low, config.clip_high)
    mean_B = token_mean(sign_B1 * free_BT.minimum(held_BT), inputs)
    ratio_B = bounded(mean_B).exp()
    metrics = ratio_metrics(log_ratio_BT) | {
        "clip_fraction": (held_BT < free_BT).to(ratio_B.dtype),
        "clamp_fraction": is_out_of_bounds(mean_B),
    }
    return LossOutput(-advantages_B * ratio_B, metrics)
