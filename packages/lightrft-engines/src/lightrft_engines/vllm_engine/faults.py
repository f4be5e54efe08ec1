"""vLLM's errors as ours: what to change in the run file, where that is known."""

from lightrft_core.errors import EnvironmentUnfit, LightRFTError, UserError

from lightrft_engines.serving.faults import Faults

FAULTS = Faults(
    "vLLM",
    (
        (
            r"Free memory on device|less than desired (GPU|CPU) memory|on kv cache allocation is less",
            EnvironmentUnfit,
            "engine.memory_fraction",
            "Lower it or engine.kv_cache_gb: others, such as the trainer, hold memory too.",
        ),
        (
            r"To serve at least one request|No available memory for the cache blocks",
            UserError,
            "engine.max_model_len",
            "Lower it to what prompts and completions need together, or raise engine.kv_cache_gb or "
            "engine.memory_fraction.",
        ),
    ),
    stamp=r"^\(\w+ pid=\d+\) |ERROR \S+ \S+ \[\S+\] ",
)


def explained(text: str, doing: str) -> LightRFTError:
    """The error for what vLLM said while it was `doing` something."""
    first = next((line for line in text.splitlines() if line.strip()), "no reason was given")
    return FAULTS.explained(text, doing, first)
