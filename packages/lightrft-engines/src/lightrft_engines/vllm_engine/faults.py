"""vLLM's errors as ours: what to change in the run file, where that is known."""

import re

from lightrft_core.errors import EnvironmentUnfit, LightRFTError, RunFailed, UserError

KNOWN: tuple[tuple[str, type[LightRFTError], str, str], ...] = (
    (
        r"out of memory|OutOfMemoryError",
        EnvironmentUnfit,
        "engine.memory_fraction",
        "Lower it (or engine.kv_cache_gb, engine.max_sequences), set engine.sleep, or cut the model by "
        "engine.tensor_parallel.",
    ),
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
    (
        r"max_model_len \(\d+\) is greater",
        UserError,
        "engine.max_model_len",
        "Leave it out, or set at most the positions that the model has.",
    ),
    (
        r"divisible by tensor parallel size",
        UserError,
        "engine.tensor_parallel",
        "Set it to a divisor of the model's attention heads.",
    ),
    (
        r"architectures? .* (are|is) not supported|no vLLM implementation",
        UserError,
        "model.path",
        "vLLM does not know this model: use the engine `embedded`.",
    ),
    (r"Address already in use|address in use", UserError, "engine.port", "Choose another, or leave it out."),
)


def explained(text: str, doing: str) -> LightRFTError:
    """The error for what vLLM said while it was `doing` something."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "no reason was given")
    for pattern, kind, where, hint in KNOWN:
        if found := re.search(pattern, text):
            line = next(line for line in text.splitlines() if found[0] in line)
            return kind(f"vLLM could not {doing}: {_said(line)}", where=where, hint=hint)
    return RunFailed(f"vLLM could not {doing}: {_said(first)}", where="engine")


def _said(line: str) -> str:
    """A line without what a log puts before it."""
    return re.sub(r"^\(\w+ pid=\d+\) |ERROR \S+ \S+ \[\S+\] ", "", line.strip())[:400]
