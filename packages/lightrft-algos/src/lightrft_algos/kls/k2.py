"""The k2 estimate of KL(policy || reference): biased, low variance, and its gradient is that of the KL itself.

    k2 = (l_ref - l)^2 / 2

Source: joschu.net/blog/kl-approx.html.
"""

from lightrft_core.data import Tensor
from lightrft_core.sections import KLSection


class K2Config(KLSection):
    """Options of `k2`."""


def k2(logprobs_BT: Tensor, ref_logprobs_BT: Tensor, *, config: K2Config) -> Tensor:
    """Squared nats per token [B, T], never negative."""
    return (ref_logprobs_BT - logprobs_BT) ** 2 / 2
