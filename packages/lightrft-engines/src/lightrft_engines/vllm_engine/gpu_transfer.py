"""Weights from GPU to GPU, by vLLM's weight-transfer engines, which pack parameters into buckets of their own.

CUDA IPC hands over the trainer's own memory, so the server's workers are on the trainer's GPUs; NCCL sends to others.
"""

import socket
from collections.abc import Iterator, Sequence

from lightrft_core.protocols import Weights, World
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo, IPCTrainerWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

from lightrft_engines.serving.http import Client
from lightrft_engines.serving.process import own_address

TIMEOUT = 600


class Source(WeightSource):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """The trainer's weights as vLLM's transfer engines read them."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._metadata: list[ParamMeta] | None = None

    def metadata(self) -> list[ParamMeta]:
        """Names, types and shapes; they stay the same, so they are gathered once."""
        if self._metadata is None:
            self._metadata = [ParamMeta(name, one.dtype, tuple(one.shape)) for name, one in self._weights()]
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self._weights())


class Direct:
    """`server.Transfer` by one of vLLM's engines, which rank 0 drives; all ranks of the trainer take part."""

    def __init__(self, backend: str, client: Client, world: World, bucket_bytes: int) -> None:
        self._backend, self._client, self._world, self._bucket_bytes = backend, client, world, bucket_bytes
        self._engine: IPCTrainerWeightTransferEngine | NCCLTrainerWeightTransferEngine | None = None

    def send(self, weights: Weights) -> Sequence[str]:
        """vLLM's own order: start, send packed buckets, finish. It does not tell what was left out."""
        if self._engine is None:
            self._engine = self._open(Source(weights))
        self._engine.send_weights()
        return []

    def close(self) -> None:
        """Leave the group that was made for it."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None

    def _open(self, source: Source) -> IPCTrainerWeightTransferEngine | NCCLTrainerWeightTransferEngine:
        client = HTTPVLLMWeightSyncClient(self._client.url, timeout=TIMEOUT)
        if self._backend == "ipc":
            info = ipc_info(self._world.rank, self._bucket_bytes)
            return IPCTrainerWeightTransferEngine.trainer_init(info, client=client, source=source)
        workers = self._client.get("/get_world_size")["world_size"]
        own = own_address(self._client.is_loopback)
        group = nccl_info(self._world.rank, own, workers + 1, self._bucket_bytes)
        return NCCLTrainerWeightTransferEngine.trainer_init(group, client=client, source=source)


def ipc_info(rank: int, bucket_bytes: int) -> IPCTrainerInitInfo:
    """Packed into buckets of this size."""
    return IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=bucket_bytes)


def nccl_info(rank: int, host: str, world_size: int, bucket_bytes: int) -> NCCLTrainerInitInfo:
    """Rank 0 of the trainer and all of the server's workers make a group at a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = int(probe.getsockname()[1])
    return NCCLTrainerInitInfo(
        rank=rank,
        master_address=host,
        master_port=port,
        world_size=world_size,
        packed=True,
        packed_buffer_size_bytes=bucket_bytes,
    )
