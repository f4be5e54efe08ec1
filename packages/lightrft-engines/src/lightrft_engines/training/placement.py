"""Where a model lives and in which numbers it computes."""

import os

import torch
from lightrft_core.errors import EnvironmentUnfit
from torch import nn

CPU_TOKENS, GPU_TOKENS = 2048, 16384


def choose_device(asked: str) -> torch.device:
    """`auto` is this rank's GPU where there is one, else the CPU; `EnvironmentUnfit` for a GPU that is not there."""
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise EnvironmentUnfit(
            f"device {asked} was asked for, but torch has none.",
            where="strategy.device",
            hint="Use `auto` or `cpu`.",
        )
    if asked == "cuda":
        asked = f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}"
    device = torch.device(asked)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on GPUs that have it and fp32 elsewhere: bf16 emulated on a CPU is many times slower."""
    if precision == "auto":
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def cast_parameters(module: nn.Module, dtype: torch.dtype, learning: torch.dtype | None = None) -> None:
    """Cast floating-point parameters, those that take a gradient to `learning` where that is given.

    Weights in 4 bits unpack to it. Buffers keep their precision (rotary frequencies must stay fp32).
    """
    for parameter in module.parameters():
        wanted = learning if learning is not None and parameter.requires_grad else dtype
        packed = getattr(parameter, "quant_state", None)  # bitsandbytes' parameters have it
        if packed is not None:
            packed.dtype = wanted
        elif parameter.is_floating_point() and parameter.dtype != wanted:
            parameter.data = parameter.data.to(wanted)


def token_limit(device: torch.device) -> int:
    """Tokens of one pass: on CPUs few enough for their caches."""
    return CPU_TOKENS if device.type == "cpu" else GPU_TOKENS
