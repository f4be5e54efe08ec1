"""The machine that a run is estimated for: ranks, each with a GPU or a share of the CPU, and the memory they have."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from lightrft_core import launch
from lightrft_core.errors import UserError

from lightrft_engines.training.config import TrainingConfig

SPARE = 0.1  # of a GPU's memory, for what its allocator cannot use
CONTEXT = 500_000_000  # bytes that CUDA and its libraries take on a GPU, and those of the exchange between GPUs
DECIMAL = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY = {"KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30, "TI": 1 << 40}


@dataclass(frozen=True, slots=True)
class Target:
    """`limit` is one rank's memory in bytes, where that is known; `base` what a CPU's process has before its model."""

    kind: Literal["cuda", "cpu"]
    ranks: int
    limit: int | None = None
    base: int = 0

    @property
    def is_gpu(self) -> bool:
        """Whether the model lives on GPUs."""
        return self.kind == "cuda"

    @property
    def usable(self) -> int | None:
        """The limit, less what is left free."""
        return None if self.limit is None else round(self.limit * (1 - SPARE))

    def dtype(self, config: TrainingConfig) -> torch.dtype:
        """What the model computes with there."""
        if config.precision == "auto":
            return torch.bfloat16 if self.is_gpu else torch.float32
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]

    @property
    def overhead(self) -> int:
        """Libraries: on a GPU a known figure."""
        return CONTEXT * (1 if self.ranks == 1 else 2) if self.is_gpu else self.base


def choose_target(config: TrainingConfig, *, gpus: int | None, processes: int | None, gpu_memory: str | None) -> Target:
    """What the flags ask for; by default what `lightrft train` would use here. `UserError` for flags without effect."""
    if config.device == "cpu":
        for name, value in (("--gpus", gpus), ("--gpu-memory", gpu_memory)):
            if value is not None:
                hint = "Leave the flag out, or add --set strategy.device=auto."
                raise UserError("has no effect: strategy.device is cpu.", where=name, hint=hint)
        return Target("cpu", processes or 1, base=resident())
    if gpus is not None and processes is not None:
        hint = "Leave --processes out: there is one process per GPU."
        raise UserError("has no effect beside --gpus.", where="--processes", hint=hint)
    here = launch.num_gpus()
    if gpus is None and gpu_memory is None and not here and not config.device.startswith("cuda"):
        return Target("cpu", processes or 1, base=resident())
    limit = None if gpu_memory is None else read_size(gpu_memory, "--gpu-memory")
    return Target("cuda", gpus or processes or here or 1, limit)


def read_size(text: str, where: str) -> int:
    """Bytes of `80GB`, `80GiB` or `80`, which is in GB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?", text.strip().upper())
    if found is None or float(found[1]) == 0:
        raise UserError(f"{text!r} is no size.", where=where, hint="Write 80GB or 79.6GiB; a bare number is in GB.")
    return round(float(found[1]) * (DECIMAL | BINARY)[found[2] or "G"])


def resident() -> int:
    """Bytes that this process has in memory: it has loaded the libraries of a run."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024
