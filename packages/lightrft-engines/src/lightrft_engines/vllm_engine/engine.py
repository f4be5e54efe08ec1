"""vLLM as an engine of a run, in the mode that was asked for."""

from lightrft_core.protocols import Engine, Setup

from lightrft_engines.serving.engine import Backend, ServedEngine
from lightrft_engines.vllm_engine.config import VllmConfig


def open_engine(config: VllmConfig, setup: Setup) -> Engine:
    """The engine in its mode; what vLLM needs is imported with it."""
    return ServedEngine(config, setup, _backend(config, setup))


def _backend(config: VllmConfig, setup: Setup) -> Backend:
    if config.mode == "server":
        from lightrft_engines.vllm_engine.dialect import server

        return server(config, setup)
    from lightrft_engines.vllm_engine.colocated import Colocated

    return Colocated(config, setup)
