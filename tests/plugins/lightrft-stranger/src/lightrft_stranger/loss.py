"""Policy gradient that learns less from mistakes than from successes."""

from lightrft_core.data import LossInputs, LossOutput
from lightrft_core.sections import Fraction, LossSection

MAX_LOG_RATIO = 20.0


class CarefulConfig(LossSection):
    """Options of `careful`."""

    mistake_weight: Fraction = 0.5
    """Weight of tokens with a negative advantage."""


def careful(inputs: LossInputs, *, config: CarefulConfig) -> LossOutput:
    """Values per token."""
    difference_BT = (inputs.logprobs_BT - inputs.old_logprobs_BT).masked_fill(~inputs.mask_BT, 0.0)
    ratio_BT = difference_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    gains_BT = inputs.advantages_BT.clamp(min=0.0) + config.mistake_weight * inputs.advantages_BT.clamp(max=0.0)
    return LossOutput(-ratio_BT * gains_BT, {"ratio": ratio_BT.detach()})
