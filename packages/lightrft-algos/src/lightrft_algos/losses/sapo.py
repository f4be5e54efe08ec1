"""SAPO (arXiv:2511.20347, equations 5-6): a soft gate instead of a hard clip.

    L_t = -(4 / tau) sigmoid(tau (r - 1)) A,  r = exp(l - l_old), tau by the sign of A

At r = 1 the gradient is that of `clip`; it fades as the ratio leaves 1, faster where the advantage is negative.
"""

from lightrft_core.data import LossInputs, LossOutput
from lightrft_core.sections import LossSection
from pydantic import Field

from lightrft_algos.ratios import bounded, log_ratio, ratio_metrics


class SapoConfig(LossSection):
    """Options of `sapo`."""

    tau_positive: float = Field(default=1.0, gt=0)
    """Temperature of tokens whose advantage is above 0."""
    tau_negative: float = Field(default=1.05, gt=0)
    """Temperature of the others; a higher one lets their gradient fade sooner."""


def sapo(inputs: LossInputs, *, config: SapoConfig) -> LossOutput:
    """Per token. Metrics: those of `ratio_metrics`; nothing is clipped."""
    advantages_BT = inputs.advantages_BT
    log_ratio_BT = log_ratio(inputs)
    tau_BT = (advantages_BT > 0).to(advantages_BT.dtype) * (config.tau_positive - config.tau_negative)
    tau_BT = tau_BT + config.tau_negative
    gate_BT = (tau_BT * (bounded(log_ratio_BT).exp() - 1.0)).sigmoid() * 4.0 / tau_BT
    return LossOutput(-gate_BT * advantages_BT, ratio_metrics(log_ratio_BT))
