"""The contract of LightRFT, and the loop and command line that use it. Never imports torch."""

from lightrft_core.hookspecs import API_LEVEL, hookimpl

__version__ = "0.1.0"
__all__ = ["API_LEVEL", "__version__", "hookimpl"]
