"""Options of the engine vllm."""

from lightrft_engines.serving.options import ServedConfig


class VllmConfig(ServedConfig):
    """vLLM: in this process, or as a server that this run starts or attaches to."""
