"""From options of a run to arguments of SGLang: the same for its engine and for the server's command line."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightrft_core.protocols import Setup

from lightrft_engines.serving.fitting import GIBIBYTE, media_limits, memory_share, refuse_on_cpu, served_dtype
from lightrft_engines.serving.options import ServedConfig
from lightrft_engines.sglang_engine.scheduler import LOADER

CPU_CACHE = 1.0  # GiB for keys and values
NO_SLEEP = "SGLang frees memory by CUDA's virtual memory: on a CPU there is none to give back."
ON_CPU = {"SGLANG_USE_CPU_ENGINE": "1"}
Arguments = dict[str, Any]  # Any: values of SGLang's ServerArgs


def is_on_cpu() -> bool:
    """Whether SGLang computes on the CPU here."""
    return not torch.cuda.is_available()


def environment(num_ranks: int = 1) -> dict[str, str]:
    """What must be set before SGLang is imported; on CPUs it asks for the device so, and where ranks share a model, for
    each one's cores. There it would also try NCCL, which comes with torch, and is given none."""
    if not is_on_cpu():
        return {}
    if num_ranks == 1:
        return dict(ON_CPU)
    cores = sorted(os.sched_getaffinity(0))
    shares = [cores[rank::num_ranks] or cores for rank in range(num_ranks)]
    binding = "|".join(",".join(map(str, share)) for share in shares)
    return {**ON_CPU, "SGLANG_CPU_OMP_THREADS_BIND": binding, "SGLANG_NCCL_SO_PATH": os.devnull}


def arguments(config: ServedConfig, setup: Setup) -> Arguments:
    """Arguments of `sglang.ServerArgs`; `UserError` for an option that this machine or model leaves without effect."""
    on_cpu = is_on_cpu()
    if on_cpu:
        refuse_on_cpu(config, "SGLang", NO_SLEEP)
    model = setup.model_section
    dtype = served_dtype(config, setup, is_on_cpu=on_cpu)
    found: Arguments = {
        "model_path": model.path,
        "tokenizer_path": getattr(model, "tokenizer", None) or model.path,
        "revision": model.revision,
        "trust_remote_code": model.trust_remote_code,
        "dtype": dtype,
        "tp_size": config.tensor_parallel,
        "max_running_requests": config.max_sequences,
        "context_length": config.max_model_len,
        "disable_cuda_graph": on_cpu if config.enforce_eager is None else config.enforce_eager,
        # the trainer's weights come before the first request, so none are read from the model's files
        "load_format": "auto" if setup.strategy is None else "dummy",
        "quantization": config.quantization,
        "enable_memory_saver": config.sleep,
        "enable_weights_cpu_backup": config.sleep and config.sleep_level == 1,
        "limit_mm_data_per_request": media_limits(config),
        "custom_weight_loader": [LOADER],
        "sampling_defaults": "openai",  # no sampling option but those of the request
        "grammar_backend": "none",
        "log_level": "error",
        "random_seed": 0,
        "sleep_on_idle": True,  # or an idle scheduler takes a core from the trainer
        **_memory(config, setup, dtype, on_cpu),
        **(CPU if on_cpu else {}),
    }
    return {name: value for name, value in found.items() if value is not None}


CPU: Mapping[str, Any] = {  # Any: as in Arguments
    "device": "cpu",
    "attention_backend": "torch_native",
    "disable_overlap_schedule": True,
    "mem_fraction_static": 0.2,
}


def command_line(found: Mapping[str, Any]) -> list[str]:  # Any: as in Arguments
    """The same as flags of SGLang's server."""
    flags: list[str] = []
    for name, value in found.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            flags += [flag] if value else []
        elif isinstance(value, Mapping):
            flags += [flag, json.dumps(value)]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            flags += [flag, *map(str, value)]
        else:
            flags += [flag, str(value)]
    return flags


def _memory(config: ServedConfig, setup: Setup, dtype: str, on_cpu: bool) -> Arguments:
    found: Arguments = {"mem_fraction_static": memory_share(config)}
    if config.kv_cache_gb is not None or on_cpu:
        size = int((config.kv_cache_gb or CPU_CACHE) * GIBIBYTE)
        found["max_total_tokens"] = size // _bytes_per_token(setup, dtype, config.tensor_parallel)
    return found


def _bytes_per_token(setup: Setup, dtype: str, num_ranks: int) -> int:
    """Keys and values of one token on one rank."""
    from transformers import AutoConfig

    section = setup.model_section
    model = AutoConfig.from_pretrained(
        section.path, revision=section.revision, trust_remote_code=section.trust_remote_code
    ).get_text_config()
    heads = getattr(model, "num_key_value_heads", None) or model.num_attention_heads
    width = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
    size = torch.bfloat16.itemsize if dtype == "auto" else getattr(torch, dtype).itemsize
    return int(2 * model.num_hidden_layers * max(1, heads // num_ranks) * width * size)


def prepare(num_ranks: int = 1) -> None:
    """Set the variables in this process, before SGLang is imported here."""
    for name, value in environment(num_ranks).items():
        os.environ.setdefault(name, value)
