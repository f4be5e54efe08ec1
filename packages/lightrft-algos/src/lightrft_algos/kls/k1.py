"""The k1 estimate of KL(policy || reference): unbiased, may be negative (joschu.net/blog/kl-approx.html).

    k1 = l - l_ref

Its gradient has an expectation of zero, so it is of use in the rewards only.
"""

from lightrft_core.data import Tensor
from lightrft_core.sections import KLSection


class K1Config(KLSection):
    """Options of `k1`."""


def k1(logprobs_BT: Tensor, ref_logprobs_BT: Tensor, *, config: K1Config) -> Tensor:
    """Nats per token [B, T]."""
    return logprobs_BT - ref_logprobs_BT
