"""A DeepSpeed engine around a module: its settings, and a start that reads the weights once.

The engine partitions what the module holds and computes with it. Cutting into passes, summing over ranks, clipping and
the learning rate stay ours, so that a step is the same under every strategy.
"""

import os
import warnings
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.utils import groups
from lightrft_core.errors import UserError
from torch import nn
from transformers import PreTrainedModel

from lightrft_engines.training.config import DeepSpeedConfig
from lightrft_engines.training.placed import Call, Source
from lightrft_engines.training.placement import cast_parameters
from lightrft_engines.training.single import Place

BUCKET = 50_000_000  # entries that are reduced or gathered at one time
Settings = Mapping[str, Any]  # Any: DeepSpeed's own configuration


@runtime_checkable
class Headed(Protocol):
    """A module that tells its head."""

    def get_output_embeddings(self) -> nn.Module | None:
        """As transformers' models do."""


def join(place: Place) -> None:
    """Hand DeepSpeed the process group that there is; `UserError` where it would use another device than the run."""
    accelerator = get_accelerator().device_name()
    if place.device.type != accelerator:
        raise UserError(
            f"the model is on {place.device.type}, and DeepSpeed would use {accelerator}.",
            where="strategy.device",
            hint=f"Use `auto`, or set the environment variable DS_ACCELERATOR={place.device.type}.",
        )
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")  # old names
    if place.device.type == "cpu":
        deepspeed.ops.__compatible_ops__ = {}  # else it compiles an all-reduce of its own for a minute; gloo has one
    device_number = os.environ.get("LOCAL_RANK", "0") if place.device.index is None else str(place.device.index)
    os.environ["LOCAL_RANK"] = device_number  # DeepSpeed takes it from there, and insists on it
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def settings_for(config: DeepSpeedConfig, module: nn.Module, dtype: torch.dtype, *, offload: bool) -> Settings:
    """What DeepSpeed is told about one module. With `offload` its parameters rest on the CPU."""
    parameters = list(module.parameters())
    num_entries = sum(parameter.numel() for parameter in parameters)
    on_cpu = {"device": "cpu", "pin_memory": get_accelerator().device_name() != "cpu"}
    zero: dict[str, object] = {
        "stage": config.stage,
        "overlap_comm": config.overlap_comm,
        "reduce_bucket_size": min(BUCKET, num_entries),
        "offload_optimizer": on_cpu if config.adam_offload or config.cpu_offload else None,
    }
    if config.stage == 3:
        vectors = [parameter.numel() for parameter in parameters if parameter.ndim <= 1]
        zero |= {
            "stage3_prefetch_bucket_size": min(BUCKET, num_entries),
            "stage3_param_persistence_threshold": max(vectors, default=0),  # gathering a vector costs more than it has
            "zero_hpz_partition_size": config.zpg,
            "offload_param": on_cpu if offload else None,
        }
    is_bf16 = dtype == torch.bfloat16
    sums = config.grad_accum_dtype if is_bf16 else "fp32"
    return {
        "train_micro_batch_size_per_gpu": 1,  # without meaning here, and DeepSpeed insists on it
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 0.0,  # it would clip at 1, and beside us
        "bf16": {"enabled": is_bf16},
        "data_types": {"grad_accum_dtype": sums},
        "communication_data_type": sums,
    }


def loaded(source: Source, place: Place, *, learns: bool, by_first_rank: bool) -> Call:
    """A module on the CPU, in the numbers that it computes in; on other ranks than the first without its weights."""
    is_read = place.world.rank == 0 or not by_first_rank or source.skeleton is None
    module = source.load() if is_read or source.skeleton is None else _without_weights(source.skeleton())
    cast_parameters(module, place.dtype)
    return Call(source.ready(module, learns=learns))


def spread(call: Call, settings: Settings, device: torch.device) -> None:
    """Leave each rank its part of every parameter that the first one has, as stage 3 wants it."""
    deepspeed.zero.Init(
        module=call,
        config_dict_or_path=dict(settings),
        zero_param_parallel_group=groups._get_zero_param_intra_parallel_group(),
    )
    for parameter in _used_outside(call.module):
        deepspeed.zero.register_external_parameter(call, parameter)
    for buffer in call.buffers():
        buffer.data = buffer.data.to(device)
        dist.broadcast(buffer.data, 0)


def opened(call: Call, settings: Settings, optimizer: torch.optim.Optimizer | None) -> DeepSpeedEngine:
    """The engine; without an optimizer one that only computes."""
    engine: DeepSpeedEngine = deepspeed.initialize(model=call, optimizer=optimizer, config=dict(settings))[0]
    return engine


def _used_outside(module: nn.Module) -> list[nn.Parameter]:
    """Those of the head, whose weight the loss takes without calling it: DeepSpeed gathers what it sees called."""
    head = module.get_output_embeddings() if isinstance(module, Headed) else None
    return [] if head is None else list(head.parameters())


def _without_weights(skeleton: nn.Module) -> nn.Module:
    module = skeleton.to_empty(device="cpu")
    if isinstance(module, PreTrainedModel):
        module.tie_weights()  # `to_empty` makes two parameters of a tied one
    return module
