"""What an engine holds on a rank's device beside the trainer: while it generates, and while the trainer works."""

from dataclasses import dataclass

from lightrft_core.sections import Section

from lightrft_engines.embedded_config import EmbeddedConfig
from lightrft_engines.estimate.census import Census
from lightrft_engines.estimate.memory import Memory
from lightrft_engines.estimate.target import Target
from lightrft_engines.serving.options import ServedConfig

COLOCATED = 0.4  # of a GPU's memory that such an engine takes by default, and GiB for keys and values on a CPU
CPU_CACHE = 1.0
SCALE = 4  # bytes of a row's scale
GIB, MIB = 1 << 30, 1 << 20
NOTHING = Memory()


@dataclass(frozen=True, slots=True)
class Engine:
    """`asleep` is from the end of generation until the sync. `note` tells what is not counted."""

    awake: Memory = NOTHING
    asleep: Memory = NOTHING
    sync: Memory = NOTHING
    note: str = ""


def engine_of(config: Section, plain: Census, element: int, target: Target, *, in_place: bool) -> Engine:
    """Of an engine's options; `plain` is the model that it serves, in numbers of `element` bytes."""
    weights = plain.count() * element
    match config:
        case EmbeddedConfig():
            own = Memory(engine=_embedded(config, plain, element, in_place=in_place))
            return Engine(own, own, own)
        case ServedConfig(mode="colocated"):
            return _colocated(config, weights, target)
        case ServedConfig():
            buckets = Memory(gathered=config.bucket_mb * MIB)
            return Engine(sync=buckets, note="the server's memory is not counted: it is on devices of its own.")
    return Engine(note="the engine's memory is not counted: add what it is told to take.")


def _embedded(config: EmbeddedConfig, plain: Census, element: int, *, in_place: bool) -> int:
    """A copy where it cannot have the policy; rounded layers are one in any case, a byte an entry and a scale a row."""
    matrices = [weight for weight in plain.weights if weight.group == "blocks" and len(weight.shape) == 2]
    num = sum(weight.num for weight in matrices) if config.quantization is not None else 0
    scales = sum(weight.shape[0] for weight in matrices) if num else 0
    return num + SCALE * scales + (0 if in_place else (plain.count() - num) * element)


def _colocated(config: ServedConfig, weights: int, target: Target) -> Engine:
    """Its share of the GPU, or weights and what is set apart for keys and values."""
    own = weights // config.tensor_parallel // (2 if config.quantization == "fp8" else 1)
    cache_gb = config.kv_cache_gb or (None if target.is_gpu else CPU_CACHE)
    note = ""
    if cache_gb is not None:
        awake = Memory(engine=own, cache=round(cache_gb * GIB))
    elif target.limit is not None:
        share = round((config.memory_fraction or COLOCATED) * target.limit)
        awake = Memory(engine=min(own, share), cache=max(0, share - own))
    else:
        awake = Memory(engine=own)
        note = "the engine takes a share of the GPU for keys and values: give --gpu-memory to count it."
    asleep = Memory(host=own if config.sleep_level == 1 else 0) if config.sleep and target.is_gpu else awake
    return Engine(awake, asleep, awake + Memory(gathered=config.bucket_mb * MIB), note)
