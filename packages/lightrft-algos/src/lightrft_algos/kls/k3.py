"""The k3 estimate of KL(policy || reference): unbiased and never negative; GRPO's (arXiv:2402.03300, equation 4).

    k3 = exp(d) - d - 1,  d = l_ref - l

Source: joschu.net/blog/kl-approx.html.
"""

from lightrft_core.data import KLOutput, Tensor
from lightrft_core.sections import KLSection

from lightrft_algos.ratios import bounded, is_out_of_bounds


class K3Config(KLSection):
    """Options of `k3`."""


def k3(logprobs_BT: Tensor, ref_logprobs_BT: Tensor, *, config: K3Config) -> KLOutput:
    """Nats per token [B, T], never negative. `d` is held within +-20; beyond that a token has no gradient.

    Metric: `clamp_fraction`, the tokens that were held.
    """
    log_ratio_BT = ref_logprobs_BT - logprobs_BT
    held_BT = bounded(log_ratio_BT)
    return KLOutput(held_BT.exp() - held_BT - 1.0, {"clamp_fraction": is_out_of_bounds(log_ratio_BT)})
