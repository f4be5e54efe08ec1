"""CPGD (arXiv:2505.12504): a policy gradient clipped in log space, with a drift term that pulls back to the old policy.

    L_t = -min(d A, clip(d, ln(1 - low), ln(1 + high)) A) + alpha drift_t,  d = l - l_old

`drift` estimates KL(old || new) by `r - 1 - d`. Its gradient `(r - 1) grad l` is taken with `min(r - 1, c)`, so that a
far-off token pulls no harder than c. No ratio multiplies the gradient of the first term.
"""

import math
from collections.abc import Mapping

from lightrft_core.data import LossInputs, LossOutput, Tensor
from lightrft_core.sections import Idle, LossSection
from pydantic import Field

from lightrft_algos.ratios import bounded, log_ratio, ratio_metrics


class CpgdConfig(LossSection):
    """Options of `cpgd`."""

    clip_low: float = Field(default=0.2, ge=0, lt=1)
    """The log-ratio counts down to ln(1 - this)."""
    clip_high: float = Field(default=0.2, ge=0)
    """The log-ratio counts up to ln(1 + this)."""
    drift_coef: float = Field(default=0.01, ge=0)
    """Weight alpha of the drift; 0 leaves it out."""
    drift_cap: float = Field(default=0.2, ge=0)
    """Largest coefficient c of the drift's gradient."""

    def idle(self) -> Mapping[str, Idle]:
        """Without the drift its cap does nothing."""
        return {} if self.drift_coef else {"drift_cap": Idle("drift_coef", "drift_coef is 0, so there is no drift.")}


def cpgd(inputs: LossInputs, *, config: CpgdConfig) -> LossOutput:
    """Per token. The drift has a gradient where the advantage is 0, too.

    Metrics: those of `ratio_metrics` (`approx_kl` is the drift), and `clip_fraction`.
    """
    advantages_BT = inputs.advantages_BT
    log_ratio_BT = log_ratio(inputs)
    bounds = math.log1p(-config.clip_low), math.log1p(config.clip_high)
    free_BT = -log_ratio_BT * advantages_BT
    clipped_BT = -log_ratio_BT.clamp(*bounds) * advantages_BT
    values_BT = free_BT.maximum(clipped_BT) + config.drift_coef * drift(log_ratio_BT, config.drift_cap)
    clip_fraction_BT = (clipped_BT > free_BT).to(values_BT.dtype)
    return LossOutput(values_BT, {**ratio_metrics(log_ratio_BT), "clip_fraction": clip_fraction_BT})


def drift(log_ratio_BT: Tensor, cap: float) -> Tensor:
    """`r - 1 - d` as a value [B, T], whose derivative by d is `min(r - 1, cap)`; the value holds d within +-20."""
    held_BT = bounded(log_ratio_BT.detach())
    slope_BT = (held_BT.exp() - 1.0).clamp(max=cap)
    return held_BT.exp() - 1.0 - held_BT + slope_BT * (log_ratio_BT - log_ratio_BT.detach())
