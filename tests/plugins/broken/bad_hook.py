"""A plugin whose hook raises after it has yielded a component."""

from lightrft_core import hookimpl
from lightrft_core.descriptors import Component

LIGHTRFT_API = 1


@hookimpl
def lightrft_losses():
    yield Component(name="bad_hook_loss", target="bad_hook:loss", summary="Never to be used.")
    raise RuntimeError("the licence server is down")
