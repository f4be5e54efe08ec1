"""Errors of engines as ours: what to change in the run file, where that is known."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lightrft_core.errors import EnvironmentUnfit, LightRFTError, RunFailed, UserError

Fault = tuple[str, type[LightRFTError], str, str]  # what the engine says; our error with its option and its hint
EVERYWHERE: tuple[Fault, ...] = (
    (
        r"out of memory|OutOfMemoryError",
        EnvironmentUnfit,
        "engine.memory_fraction",
        "Lower it (or engine.kv_cache_gb, engine.max_sequences), set engine.sleep, or cut the model by "
        "engine.tensor_parallel.",
    ),
    (
        r"(max_model_len|context_length) \(\d+\) is greater",
        UserError,
        "engine.max_model_len",
        "Leave it out, or set at most the positions that the model has.",
    ),
    (
        r"divisible by (tensor|tp_size)|is not divisible by \d+|% tp_size",
        UserError,
        "engine.tensor_parallel",
        "Set it to a divisor of the model's attention heads.",
    ),
    (
        r"architectures? .* (are|is) not supported|no (vLLM|SGLang) implementation",
        UserError,
        "model.path",
        "This engine does not know the model: use the engine `embedded`.",
    ),
    (r"Address already in use|address in use", UserError, "engine.port", "Choose another, or leave it out."),
)


@dataclass(frozen=True, slots=True)
class Faults:
    """What one engine says; `stamp` is what its log puts before a line."""

    label: str
    own: Sequence[Fault]
    stamp: str

    def explained(self, text: str, doing: str, unknown: str) -> LightRFTError:
        """The error for a text; where nothing in it is known, for the line `unknown`."""
        for pattern, kind, where, hint in (*self.own, *EVERYWHERE):
            if found := re.search(pattern, text):
                line = next(line for line in text.splitlines() if found[0] in line)
                return kind(self._could_not(doing, line), where=where, hint=hint)
        return RunFailed(self._could_not(doing, unknown), where="engine")

    def _could_not(self, doing: str, line: str) -> str:
        return f"{self.label} could not {doing}: {re.sub(self.stamp, '', line.strip())[:400]}"
