"""A plugin that implements a hook which does not exist."""

from lightrft_core import hookimpl
from lightrft_core.descriptors import Component

LIGHTRFT_API = 1


@hookimpl
def lightrft_looses():
    yield Component(name="bad_name_loss", target="bad_name:loss", summary="Never to be seen.")
