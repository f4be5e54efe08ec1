"""The ranks of a run, over torch.distributed: gloo on CPUs, NCCL on GPUs. Nothing is pickled."""

import json
import os
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from lightrft_core.protocols import Json, SoloWorld, World
from torch import Tensor

TIMEOUT = timedelta(minutes=30)  # a rank may spend long in a reward while the others wait


class TorchWorld:
    """`protocols.World` over a process group of all ranks, by default the first one."""

    def __init__(self, device: torch.device, owns_group: bool = False, group: dist.ProcessGroup | None = None) -> None:
        self._device, self._owns_group, self.group = device, owns_group, group
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def sum(self, values: Sequence[float]) -> list[float]:
        """Elementwise sum over ranks in float64; the same on every rank."""
        tensor = torch.tensor(list(values), dtype=torch.float64, device=self._device)
        dist.all_reduce(tensor, group=self.group)
        return [float(value) for value in tensor.tolist()]

    def gather(self, item: Json) -> list[Json]:
        """Every rank's JSON value, in rank order, on every rank; sent as JSON text, padded to the longest."""
        payload = torch.frombuffer(bytearray(json.dumps(item).encode()), dtype=torch.uint8).to(self._device)
        size = torch.tensor([payload.numel()], device=self._device)
        sizes = [torch.zeros_like(size) for _ in range(self.size)]
        dist.all_gather(sizes, size, group=self.group)
        counts = [int(count) for count in sizes]
        padded = payload.new_zeros(max(counts))
        padded[: payload.numel()] = payload
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded, group=self.group)
        return [json.loads(bytes(part[:count].tolist())) for part, count in zip(parts, counts, strict=True)]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        dist.all_reduce(torch.zeros(1, device=self._device), group=self.group)

    def close(self) -> None:
        """Leave the process group, if this world made it."""
        if self._owns_group and dist.is_initialized():
            dist.destroy_process_group()


def open_world(device: torch.device) -> World:
    """The world that torchrun (RANK, WORLD_SIZE) or an existing process group defines; alone, where neither does."""
    if dist.is_available() and dist.is_initialized():
        return TorchWorld(device) if dist.get_world_size() > 1 else SoloWorld()
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return SoloWorld()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT, device_id=device if device.type == "cuda" else None)
    return TorchWorld(device, owns_group=True)


def world_beside(world: World) -> World:
    """The same ranks over connections of their own, for a second thread: a process group is not made for two.

    All ranks call it together.
    """
    if world.size == 1:
        return world
    return TorchWorld(torch.device("cpu"), group=dist.new_group(backend="gloo", timeout=TIMEOUT))


def require_group(device: torch.device) -> None:
    """A process group of one where there is none: torch's sharding asks for a group even alone."""
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def add_over_ranks(tensor: Tensor, world: World) -> None:
    """Sum a tensor over all ranks, in place; nothing to do alone."""
    if world.size > 1:
        dist.all_reduce(tensor)
