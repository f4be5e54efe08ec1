"""How weights reach SGLang, the same in both modes: by files in memory, by CUDA IPC, or from GPU to GPU.

Every way opens a session of SGLang's, loads flattened or filed buckets in it, and closes it, which also puts weights
that are quantized on arrival into their final layout.
"""

import secrets
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from lightrft_core.errors import LightRFTError
from lightrft_core.protocols import Weights, World
from torch import Tensor

from lightrft_engines.serving.buckets import Bucket, buckets, write_shared
from lightrft_engines.serving.fitting import sync_way
from lightrft_engines.serving.options import ServedConfig
from lightrft_engines.serving.server import Transfer
from lightrft_engines.sglang_engine.arguments import is_on_cpu
from lightrft_engines.sglang_engine.scheduler import LOADER

Call = Callable[[str, Mapping[str, Any]], Any]  # one of SGLang's routes with a body of JSON
DEVICE = 6  # place of the device among the arguments of torch's `rebuild_cuda_tensor`; SGLang relies on it too
FLAT = "flattened_bucket"


@contextmanager
def session(call: Call, is_leader: bool) -> Iterator[None]:
    """SGLang takes weights between these two calls; it is closed after a failure too, or none could follow."""
    if is_leader:
        call("begin_weight_update", {})
    try:
        yield
    except BaseException:
        if is_leader:
            with suppress(LightRFTError):
                call("end_weight_update", {})
        raise
    if is_leader:
        call("end_weight_update", {})


class Files:
    """Safetensors files that live in memory: written by the leader, mapped by SGLang's workers, gone when read."""

    def __init__(self, call: Call, is_leader: bool, folder: Path, config: ServedConfig) -> None:
        self._call, self._is_leader, self._folder, self._config = call, is_leader, folder, config

    def send(self, weights: Weights) -> Sequence[str]:
        """A file and a call per bucket."""
        from sglang.srt.utils import MultiprocessingSerializer

        with session(self._call, self._is_leader):
            for bucket in buckets(weights(), self._config.bucket_mb):  # gathering whole parameters takes all ranks
                if not self._is_leader:
                    continue
                path = write_shared(bucket, self._folder)
                told = MultiprocessingSerializer.serialize([(str(path), torch.empty(0))], output_str=True)
                try:
                    self._call("update_weights_from_tensor", _body([told] * self._config.tensor_parallel, LOADER))
                finally:
                    path.unlink()
        return []

    def close(self) -> None:
        """Nothing is held."""


class Handles:
    """Buckets in the memory of the trainer's GPUs, which SGLang's workers on the same GPUs open by CUDA IPC.

    Each worker gets a handle of its own, from the rank whose GPU it shares.
    """

    def __init__(self, call: Call, is_leader: bool, world: World, config: ServedConfig) -> None:
        self._call, self._is_leader, self._world, self._config = call, is_leader, world, config

    def send(self, weights: Weights) -> Sequence[str]:
        """A flattened bucket and a call at a time; it is kept until all workers have loaded it."""
        with session(self._call, self._is_leader):
            for bucket in buckets(weights(), self._config.bucket_mb):
                flat = flatten(bucket)
                told = self._handles(payload(flat))
                if self._is_leader:
                    self._call("update_weights_from_tensor", _body(told, FLAT))
                self._world.barrier()
        return []

    def close(self) -> None:
        """Nothing is held."""

    def _handles(self, own: str) -> list[str]:
        """One for each worker of this rank's engine."""
        size = self._config.tensor_parallel
        told = self._world.gather(own)
        first = self._world.rank // size * size if self._config.mode == "colocated" else 0
        return [told[min(first + worker, len(told) - 1)] for worker in range(size)]


class Broadcast:
    """Rank 0 of the trainer sends flattened buckets to all workers of a server, in a process group made for it."""

    def __init__(self, call: Call, world: World, config: ServedConfig, address: str, backend: str = "nccl") -> None:
        self._call, self._world, self._config, self._address = call, world, config, address
        self._backend, self._name = backend, f"lightrft-{secrets.token_hex(4)}"
        self._group: Any = None  # Any: torch's process group
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="weights")

    def send(self, weights: Weights) -> Sequence[str]:
        """The server receives while rank 0 sends."""
        is_sender = self._world.rank == 0
        if is_sender and self._group is None:
            self._group = self._join()
        with session(self._call, is_sender):
            for bucket in buckets(weights(), self._config.bucket_mb):
                if is_sender:
                    told = self._pool.submit(
                        self._call, "update_weights_from_distributed", _described(bucket, self._name)
                    )
                    torch.distributed.broadcast(flatten(bucket).get_flattened_tensor(), src=0, group=self._group)
                    told.result()
        return []

    def close(self) -> None:
        """Leave the group that was made for it."""
        if self._group is not None:
            torch.distributed.destroy_process_group(self._group)
            self._group = None
        self._pool.shutdown(wait=False)

    def _join(self) -> Any:  # Any: torch's process group
        """Rank 0 and all workers meet at a free port of this machine."""
        from sglang.srt.utils import init_custom_process_group

        body = meeting(self._address, self._config.tensor_parallel + 1, self._backend, self._name)
        told = self._pool.submit(self._call, "init_weights_update_group", body)
        at = f"tcp://{body['master_address']}:{body['master_port']}"
        group = init_custom_process_group(
            backend=self._backend, init_method=at, world_size=body["world_size"], rank=0, group_name=self._name
        )
        told.result()
        return group


def meeting(address: str, world_size: int, backend: str, name: str) -> dict[str, Any]:  # Any: JSON
    """Where SGLang's workers join the trainer's rank 0."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = int(probe.getsockname()[1])
    return {
        "master_address": address,
        "master_port": port,
        "rank_offset": 1,
        "world_size": world_size,
        "group_name": name,
        "backend": backend,
    }


def flatten(bucket: Bucket) -> Any:  # Any: SGLang's FlattenedTensorBucket
    """One tensor of bytes that knows where each parameter lies."""
    from sglang.srt.weight_sync.tensor_bucket import FlattenedTensorBucket

    return FlattenedTensorBucket(named_tensors=[(name, tensor.detach()) for name, tensor in bucket])


class Handle:
    """Pickled, the place of a tensor in memory that the reader maps; a GPU goes by its own name in it.

    SGLang's senders replace torch's pickling in the whole process for that, and then none of a CPU's tensors works.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:  # Any: as torch pickles tensors
        from torch.multiprocessing.reductions import reduce_tensor

        rebuild, found = reduce_tensor(self._tensor)
        if self._tensor.is_cuda:
            name = str(torch.cuda.get_device_properties(found[DEVICE]).uuid)
            found = (*found[:DEVICE], name, *found[DEVICE + 1 :])
        return rebuild, found


def payload(flat: Any) -> str:  # Any: SGLang's FlattenedTensorBucket
    """A handle to it, not its bytes."""
    from sglang.srt.utils import MultiprocessingSerializer

    told = {"flattened_tensor": Handle(flat.get_flattened_tensor()), "metadata": flat.get_metadata()}
    return str(MultiprocessingSerializer.serialize(told, output_str=True))


def choose(config: ServedConfig, call: Call, world: World, folder: Path, *, is_leader: bool) -> Transfer:
    """The way for an engine on this machine."""
    if sync_way(config, is_on_cpu=is_on_cpu()) == "shared_memory":
        return Files(call, is_leader, folder, config)
    return Handles(call, is_leader, world, config)


def _body(told: Sequence[str], load_format: str) -> dict[str, Any]:  # Any: JSON
    return {"serialized_named_tensors": list(told), "load_format": load_format, "flush_cache": False}


def _described(bucket: Sequence[tuple[str, Tensor]], name: str) -> dict[str, Any]:  # Any: JSON
    return {
        "names": [name for name, _ in bucket],
        "dtypes": [str(tensor.dtype).removeprefix("torch.") for _, tensor in bucket],
        "shapes": [list(tensor.shape) for _, tensor in bucket],
        "group_name": name,
        "load_format": FLAT,
        "flush_cache": False,
    }
