"""A tensor cut into runs of its entries, one for each rank: how DeepSpeed partitions weights and optimizer state."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """This rank's run of a tensor's entries in row-major order, perhaps empty; the ranks' runs cover it once."""

    entries_N: Tensor
    start: int
    shape: torch.Size

    def whole(self, rank: int | None = None) -> Tensor:
        """The tensor, on every rank or on one alone: the others get nonsense. All ranks call it together."""
        entries_N = self.entries_N.new_zeros(self.shape.numel())
        entries_N[self._place()] = self.entries_N
        if rank is None:
            dist.all_reduce(entries_N)
        else:
            dist.reduce(entries_N, rank)
        return entries_N.view(self.shape)

    def holding(self, entries_N: Tensor) -> "Span":
        """The same run of other entries."""
        return Span(entries_N, self.start, self.shape)

    def cut(self, whole: Tensor) -> Tensor:
        """This rank's run of another tensor of the same shape: [N]."""
        return whole.flatten()[self._place()]

    def _place(self) -> slice:
        return slice(self.start, self.start + len(self.entries_N))


def shared_out(sizes: Sequence[int], num_ranks: int) -> list[int]:
    """For each item the rank that takes it; neighbours stay together and ranks get like shares."""
    total, seen, owners = max(sum(sizes), 1), 0, []
    for size in sizes:
        owners.append(min(seen * num_ranks // total, num_ranks - 1))
        seen += size
    return owners
