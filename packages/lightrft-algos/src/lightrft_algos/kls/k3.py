"""The k3 estimate of KL(policy || reference): unbiased and never negative; GRPO's (arXiv:2402.03300, equation 4).

    k3 = exp(d) - d - 1,  d = l_ref - l

Source: joschu.net/blog/kl-approx.html.
"""

from lightrft_core.data import Tensor
from lightrft_core.sections import KLSection

MAX_LOG_RATIO = 20.0


class K3Config(KLSection):
    """Options of `k3`."""


def k3(logprobs_BT: Tensor, ref_logprobs_BT: Tensor, *, config: K3Config) -> Tensor:
    """Nats per token [B, T], never negative. `d` is held within +-20; beyond that a token has no gradient."""
    log_ratio_BT = (ref_logprobs_BT - logprobs_BT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return log_ratio_BT.exp() - log_ratio_BT - 1.0
