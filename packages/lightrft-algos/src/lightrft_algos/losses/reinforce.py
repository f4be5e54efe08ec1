"""The policy gradient itself (Williams 1992): L_t = -A l. No ratio, no clip: for one optimizer step per rollout."""

from lightrft_core.data import LossInputs, LossOutput
from lightrft_core.sections import LossSection

from lightrft_algos.ratios import log_ratio, ratio_metrics


class ReinforceLossConfig(LossSection):
    """Options of `reinforce`."""


def reinforce(inputs: LossInputs, *, config: ReinforceLossConfig) -> LossOutput:
    """Per token. Metrics: those of `ratio_metrics`, which tell how far later minibatches are off-policy."""
    logprobs_BT = inputs.logprobs_BT.masked_fill(~inputs.mask_BT, 0.0)
    return LossOutput(-inputs.advantages_BT * logprobs_BT, ratio_metrics(log_ratio(inputs)))
