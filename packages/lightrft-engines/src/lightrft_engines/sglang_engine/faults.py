"""SGLang's errors as ours: what to change in the run file, where that is known."""

import re

from lightrft_core.errors import EnvironmentUnfit, LightRFTError, RunFailed, UserError

KNOWN: tuple[tuple[str, type[LightRFTError], str, str], ...] = (
    (
        r"No module named 'sgl_kernel'",
        EnvironmentUnfit,
        "engine.use",
        "SGLang needs its compiled kernels: the distribution sglang-kernel on GPUs, and on CPUs SGLang's own build "
        "for AVX-512. Without them use the engine `embedded` or `vllm`.",
    ),
    (
        r"Memory pool size is too small|Not enough memory",
        UserError,
        "engine.kv_cache_gb",
        "Raise it (or engine.memory_fraction), or lower engine.max_model_len to what prompts and completions need.",
    ),
    (
        r"out of memory|OutOfMemoryError",
        EnvironmentUnfit,
        "engine.memory_fraction",
        "Lower it (or engine.kv_cache_gb, engine.max_sequences), set engine.sleep, or cut the model by "
        "engine.tensor_parallel.",
    ),
    (
        r"context_length \(\d+\) is greater",
        UserError,
        "engine.max_model_len",
        "Leave it out, or set at most the positions that the model has.",
    ),
    (
        r"is not divisible by \d+|divisible by (tp_size|tensor)|% tp_size",
        UserError,
        "engine.tensor_parallel",
        "Set it to a divisor of the model's attention heads.",
    ),
    (
        r"architectures? .* (are|is) not supported|has no SGLang implementation",
        UserError,
        "model.path",
        "SGLang does not know this model: use the engine `embedded`.",
    ),
    (r"Address already in use|address in use", UserError, "engine.port", "Choose another, or leave it out."),
)


def explained(text: str, doing: str) -> LightRFTError:
    """The error for what SGLang said while it was `doing` something."""
    for pattern, kind, where, hint in KNOWN:
        if found := re.search(pattern, text):
            line = next(line for line in text.splitlines() if found[0] in line)
            return kind(f"SGLang could not {doing}: {_said(line)}", where=where, hint=hint)
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"\S*(Error|Exception)\b", line.strip())]
    said = _said((errors or lines or ["no reason was given"])[-1])
    return RunFailed(f"SGLang could not {doing}: {said}", where="engine")


def _said(line: str) -> str:
    """A line without what a log puts before it."""
    return re.sub(r"^\[\d{4}-\d\d-\d\d [^\]]*\] ", "", line.strip())[:400]
