"""A head whose rows are spread over ranks: each holds a run of the vocabulary, all hold the same hidden states.

Three reductions of a few numbers per token make the ranks' softmax one (Megatron-LM, https://arxiv.org/abs/1909.08053,
section 3), and one more adds up the gradient of the hidden states.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightrft_engines.head_tiles import Totals


class Head(Protocol):
    """An output layer's weight [V, D], or [V / ranks, D], and bias."""

    @property
    def weight(self) -> Tensor:
        """Rows of the vocabulary."""

    @property
    def bias(self) -> Tensor | None:
        """One entry a row."""


@dataclass(frozen=True, slots=True)
class VocabShard:
    """This rank's rows of the head; every rank of the group calls with the same tokens, in the same order."""

    first: int
    """The vocabulary's entry that this rank's first row belongs to."""
    group: dist.ProcessGroup | None = None
    """The ranks that hold the vocabulary together; by default all."""

    def merged(self, own: Totals) -> Totals:
        """Totals of the whole vocabulary, the same on every rank."""
        highest_2N = torch.stack([own.top_N, own.target_N])
        dist.all_reduce(highest_2N, dist.ReduceOp.MAX, self.group)
        top_N, target_N = highest_2N
        rebased = own.rebased(top_N)
        sums_2N = torch.stack([rebased.mass_N, rebased.pull_N])
        dist.all_reduce(sums_2N, dist.ReduceOp.SUM, self.group)
        return Totals(top_N, sums_2N[0], sums_2N[1], target_N)

    def add_up(self, partial_ND: Tensor) -> Tensor:
        """The sum over the ranks, in place."""
        dist.all_reduce(partial_ND, dist.ReduceOp.SUM, self.group)
        return partial_ND


@dataclass(frozen=True, slots=True)
class _OwnRows:
    weight: Tensor
    bias: Tensor | None


def own_vocabulary(head: nn.Linear) -> tuple[Head, VocabShard | None]:
    """A head as it is; of one whose weight is a DTensor split by rows, this rank's rows and where they lie."""
    if not isinstance(head.weight, DTensor):
        return head, None
    mesh, local_WD = head.weight.device_mesh, head.weight.to_local()
    bias = head.bias.to_local() if isinstance(head.bias, DTensor) else head.bias
    return _OwnRows(local_WD, bias), VocabShard(mesh.get_local_rank() * len(local_WD), mesh.get_group())
