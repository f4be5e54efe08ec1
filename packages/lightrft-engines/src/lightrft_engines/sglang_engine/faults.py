"""SGLang's errors as ours: what to change in the run file, where that is known."""

import re

from lightrft_core.errors import EnvironmentUnfit, LightRFTError, UserError

from lightrft_engines.serving.faults import Faults

FAULTS = Faults(
    "SGLang",
    (
        (
            r"No module named 'sgl_kernel'",
            EnvironmentUnfit,
            "engine.use",
            "SGLang needs its compiled kernels: the distribution sglang-kernel on GPUs, and on CPUs SGLang's own "
            "build for AVX-512. Without them use the engine `embedded` or `vllm`.",
        ),
        (
            r"Memory pool size is too small|Not enough memory",
            UserError,
            "engine.kv_cache_gb",
            "Raise it (or engine.memory_fraction), or lower engine.max_model_len to what prompts and completions need.",
        ),
    ),
    stamp=r"^\[\d{4}-\d\d-\d\d [^\]]*\] ",
)


def explained(text: str, doing: str) -> LightRFTError:
    """The error for what SGLang said while it was `doing` something."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"\S*(Error|Exception)\b", line.strip())]
    return FAULTS.explained(text, doing, (errors or lines or ["no reason was given"])[-1])
