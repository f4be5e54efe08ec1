"""The ranks of a sharded model: copies x shards x tensor ranks, once for computing and once on the CPU, for files."""

import torch
import torch.distributed as dist
from lightrft_core.errors import UserError
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

NAMES = ("copy", "shard", "tensor")


class Meshes:
    """`tensor_size` neighbours compute one row together, `shard_size` of these share one copy of the weights."""

    def __init__(self, device: torch.device, size: int, shard_size: int | None, tensor_size: int) -> None:
        _require_divisor(tensor_size, size, "share each layer", "strategy.tensor_parallel")
        data_size = size // tensor_size
        per_copy = shard_size or data_size
        _require_divisor(per_copy, data_size, "share a copy", "strategy.shard_size")
        shape = (data_size // per_copy, per_copy, tensor_size)
        self.device_type, self.tensor_size = device.type, tensor_size
        self._root = init_device_mesh(device.type, shape, mesh_dim_names=NAMES)
        self._cpu = self._root if device.type == "cpu" else init_device_mesh("cpu", shape, mesh_dim_names=NAMES)
        self.data = self._root["copy", "shard"] if shape[0] > 1 else self._root["shard"]

    @property
    def tensor(self) -> DeviceMesh:
        """The ranks that compute one row together."""
        return self._root["tensor"]

    def on_cpu(self, mesh: DeviceMesh) -> DeviceMesh:
        """The same ranks as some dimensions of ours, on the CPU."""
        return mesh if self._cpu is self._root else self._cpu[mesh.mesh_dim_names]

    def sum_over_copy(self, whole: float, split: float) -> float:
        """Sum over the ranks that hold one copy: of `whole` over its shards, of `split` over tensor ranks, too."""
        both = torch.tensor([whole, split], dtype=torch.float64, device=self.device_type)
        dist.all_reduce(both, group=self._root.get_group("shard"))
        if self.tensor_size > 1:
            dist.all_reduce(both[1:], group=self._root.get_group("tensor"))
        return float(both.sum())


def _require_divisor(part: int, size: int, what: str, where: str) -> None:
    if size % part:
        raise UserError(
            f"{part} ranks cannot {what}: it does not divide the {size} ranks there are.",
            where=where,
            hint=f"Choose a divisor of {size}, or leave it out.",
        )
