"""What this package offers. It holds no adapter yet: prompts with media are refused with a plain message."""

from collections.abc import Iterable

from lightrft_core import hookimpl
from lightrft_core.descriptors import ModelComponent

LIGHTRFT_API = 1


@hookimpl
def lightrft_models() -> Iterable[ModelComponent]:
    """Adapters by `model_type`."""
    return ()
