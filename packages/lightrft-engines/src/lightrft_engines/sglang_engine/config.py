"""Options of the engine sglang."""

from lightrft_engines.serving.options import ServedConfig


class SglangConfig(ServedConfig):
    """SGLang: started by this process, or as a server that this run starts or attaches to."""
