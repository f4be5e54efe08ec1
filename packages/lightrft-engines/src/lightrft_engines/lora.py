"""LoRA by PEFT: linear layers get a low-rank path beside them, which alone learns (arXiv:2106.09685).

    y = W x + (alpha / rank) B A x        A of rank x in, B of out x rank, zero at the start

With 4-bit base weights (QLoRA, arXiv:2305.14314) W is what the 4 bits stand for, in training and wherever it is served.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightrft_core.errors import UserError
from lightrft_core.suggest import did_you_mean
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightrft_engines.config import LoraSection
from lightrft_engines.extras import load_extra
from lightrft_engines.tensors_io import write_tensors

ADAPTER, WHERE = "default", "model.lora"
ALL = "all-linear"


def add_adapters(module: PreTrainedModel, lora: LoraSection, *, path: str, seed: int) -> PreTrainedModel:
    """The module with adapters in place, everything else frozen; A is drawn from the seed. `path` names the base model.

    `UserError` where a name in `target_modules` is no linear layer inside of the model.
    """
    peft = load_extra("peft", "lora", purpose="LoRA adapters", where=WHERE)
    _require_layers(module, lora.target_modules)
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=ALL if lora.target_modules == (ALL,) else list(lora.target_modules),
        task_type="CAUSAL_LM",
        base_model_name_or_path=path,
    )
    is_on_meta = next(module.parameters()).device.type == "meta"
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT corrects a flag for GPT-2's layers, and says so
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, module, ADAPTER, low_cpu_mem_usage=is_on_meta)
    return module.eval()


def adapted_layers(module: nn.Module) -> Iterator[tuple[str, Any]]:  # Any: PEFT's layers
    """Layers with adapters, by their names in the plain model."""
    from peft.tuners.lora import LoraLayer

    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            yield name, layer


def in_4_bits() -> BitsAndBytesConfig:
    """NF4 with doubly quantised scales, as QLoRA has it."""
    load_extra("bitsandbytes", "bitsandbytes", purpose="4-bit weights", where=f"{WHERE}.load_in_4bit")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def as_they_come(module: nn.Module) -> None:
    """Let 4-bit layers compute in the numbers of their inputs, and in the layout that gradients need."""
    from bitsandbytes.nn import Linear4bit

    for layer in module.modules():
        if isinstance(layer, Linear4bit):
            layer.compute_dtype, layer.compute_type_is_set = None, False
            layer.support_avx512bf16_for_cpu = False  # else passes without gradient compute in bf16, and repack


def save_adapters(module: PreTrainedModel, path: Path, weights: Mapping[str, Tensor]) -> None:
    """A folder that `PeftModel.from_pretrained` loads over the base model; `weights` are whole, by our names."""
    path.mkdir(parents=True, exist_ok=True)
    named = {f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": weights[name] for name in weights}
    write_tensors(path / "adapter_model.safetensors", named)
    config = copy.copy(module.peft_config[ADAPTER])
    config.inference_mode = True
    config.save_pretrained(path)


def _require_layers(module: PreTrainedModel, wanted: tuple[str, ...]) -> None:
    outputs = module.get_output_embeddings()
    inner = [
        name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | Conv1D) and layer is not outputs
    ]
    known = list(dict.fromkeys(name.rpartition(".")[2] for name in inner))
    for name in wanted if wanted != (ALL,) else ():
        if not any(layer == name or layer.endswith(f".{name}") for layer in inner):
            raise UserError(
                f"the model has no linear layer {name!r} between its embeddings and its output.",
                where=f"{WHERE}.target_modules",
                hint=did_you_mean(name, [*known, ALL]),
            )
