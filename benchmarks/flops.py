"""How much a model computes for a token, and how much a device could."""

from collections.abc import Callable
from typing import Any

import torch

TFLOPS = {  # bf16, dense, by NVIDIA's data sheets; a name's first match counts
    "H100 PCIe": 756,
    "H100": 989,
    "H200": 989,
    "B200": 2250,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "RTX 4090": 165,
}


def forward_flops(model: Any, context: float) -> float:  # Any: a transformers model
    """Of one token with so many before it on average: two for each weight of a product, and those of attention."""
    embedding, config = model.get_input_embeddings().weight.numel(), model.config
    weights = sum(parameter.numel() for parameter in model.parameters()) - embedding
    return 2.0 * weights + 4.0 * config.num_hidden_layers * config.hidden_size * context


def peak_flops(device: torch.device, dtype: torch.dtype, seconds: Callable[[Callable[[], object]], float]) -> float:
    """By a GPU's data sheet; for what is not in the list what one large product reaches here, timed by `seconds`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    known = [number for part, number in TFLOPS.items() if part in name]
    if known:
        return known[0] * 1e12
    width = 8192 if device.type == "cuda" else 1024
    left = torch.randn(width, width, device=device, dtype=dtype)
    return 2.0 * width**3 / seconds(lambda: left @ left)
