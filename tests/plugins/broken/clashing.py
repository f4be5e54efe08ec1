"""A plugin that offers a KL estimator under a name which lightrft-algos has already."""

from lightrft_core import hookimpl
from lightrft_core.descriptors import Component
from lightrft_core.sections import KLSection

LIGHTRFT_API = 1


class TwinConfig(KLSection):
    """No options of its own."""


def twin(logprobs_BT, ref_logprobs_BT, *, config):
    return (logprobs_BT - ref_logprobs_BT) ** 2


@hookimpl
def lightrft_kls():
    yield Component(name="k2", target="clashing:twin", config="clashing:TwinConfig", summary="The square, not halved.")
