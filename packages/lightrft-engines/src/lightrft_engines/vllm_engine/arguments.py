"""From options of a run to arguments of vLLM: the same for the library and for the server's command line."""

from collections.abc import Mapping
from typing import Any

import torch
from lightrft_core.protocols import Setup
from vllm.platforms import current_platform

from lightrft_engines.serving.fitting import GIBIBYTE, media_limits, memory_share, refuse_on_cpu, served_dtype
from lightrft_engines.vllm_engine import cpu
from lightrft_engines.vllm_engine.config import VllmConfig

EXTENSION = "lightrft_engines.vllm_engine.worker.Worker"
LOGPROBS = "processed_logprobs"  # of the distribution that was sampled: temperature and truncation applied
NO_SLEEP = "vLLM's sleep mode needs a GPU: on a CPU there is no memory to give back."
Arguments = dict[str, Any]  # Any: values of vLLM's EngineArgs


def arguments(config: VllmConfig, setup: Setup) -> Arguments:
    """Arguments of `vllm.EngineArgs`; `UserError` for an option that this machine or model leaves without effect."""
    on_cpu = bool(current_platform.is_cpu())
    if on_cpu:
        refuse_on_cpu(config, "vLLM", NO_SLEEP)
    model = setup.model_section
    found: Arguments = {
        "model": model.path,
        "tokenizer": getattr(model, "tokenizer", None) or model.path,
        "revision": model.revision,
        "trust_remote_code": model.trust_remote_code,
        "dtype": served_dtype(config, setup, is_on_cpu=on_cpu),
        "tensor_parallel_size": config.tensor_parallel,
        "max_num_seqs": config.max_sequences,
        "max_model_len": config.max_model_len,
        "enforce_eager": on_cpu if config.enforce_eager is None else config.enforce_eager,
        "logprobs_mode": LOGPROBS,
        "generation_config": "vllm",  # no sampling option but those of the request
        "worker_extension_cls": EXTENSION,
        # the trainer's weights come before the first request, so none are read from the model's files
        "load_format": "auto" if setup.strategy is None else "dummy",
        "quantization": config.quantization,
        "enable_sleep_mode": config.sleep or None,
        "limit_mm_per_prompt": media_limits(config),
        **_memory(config, on_cpu),
        **(cpu.ARGUMENTS if on_cpu else {}),
    }
    return {name: value for name, value in found.items() if value is not None}


def command_line(found: Mapping[str, Any]) -> list[str]:  # Any: as in Arguments
    """The same as flags of vLLM's server."""
    flags: list[str] = []
    for name, value in found.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            flags += [flag] if value else [f"--no-{name.replace('_', '-')}"]
        elif isinstance(value, Mapping):
            flags += [f"{flag}.{key}={number}" for key, number in value.items()]
        else:
            flags += [flag, str(value)]
    return flags


def _memory(config: VllmConfig, on_cpu: bool) -> Arguments:
    if config.kv_cache_gb is not None or on_cpu:
        return {"kv_cache_memory_bytes": int((config.kv_cache_gb or 1.0) * GIBIBYTE)}
    return {"gpu_memory_utilization": memory_share(config)}


def is_on_cpu() -> bool:
    """Whether vLLM computes on the CPU here."""
    return bool(current_platform.is_cpu()) or not torch.cuda.is_available()
