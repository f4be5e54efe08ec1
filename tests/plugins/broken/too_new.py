"""A plugin written for a later version of LightRFT."""

from lightrft_core import hookimpl
from lightrft_core.descriptors import Component

LIGHTRFT_API = 99


@hookimpl
def lightrft_dreams():
    yield Component(name="too_new_dream", target="too_new:dream", summary="A kind that does not exist yet.")
