"""SGLang as an engine of a run, in the mode that was asked for."""

from lightrft_core.protocols import Engine, Setup

from lightrft_engines.serving.engine import Backend, ServedEngine
from lightrft_engines.sglang_engine.arguments import prepare
from lightrft_engines.sglang_engine.config import SglangConfig


def open_engine(config: SglangConfig, setup: Setup) -> Engine:
    """The engine in its mode; what SGLang needs is imported with it."""
    prepare()
    return ServedEngine(config, setup, _backend(config, setup))


def _backend(config: SglangConfig, setup: Setup) -> Backend:
    if config.mode == "server":
        from lightrft_engines.sglang_engine.dialect import server

        return server(config, setup)
    from lightrft_engines.sglang_engine.colocated import Colocated

    return Colocated(config, setup)
