"""Several ranks share each sequence (Ulysses): tokens are split for every layer, heads for attention alone.

A packed row of N tokens is cut into `size` slices of n = N / size; each rank runs the layers on its own slice. As
attention needs whole sequences, an all-to-all turns [H heads, n tokens] into [H / size heads, N tokens] before it, and
another turns its output back ("DeepSpeed Ulysses", arXiv:2309.14509). Activations shrink by `size`; gradients add up.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightrft_engines.packing import Cluster, Laid, SharedPrompts


@dataclass(frozen=True, slots=True)
class SequenceRanks:
    """The ranks that share each sequence: all of them hold the same rows."""

    group: dist.ProcessGroup
    rank: int
    size: int

    def split(self, laid: Laid) -> "Slice":
        """This rank's slice of a packed row, filled up so that slices are equal."""
        assert isinstance(laid.plan, SharedPrompts)  # only packed rows are split
        assert laid.position_ids is not None
        missing = -laid.input_ids.shape[1] % self.size
        clusters = laid.plan.clusters + ((Cluster(missing, ()),) if missing else ())
        ids = torch.nn.functional.pad(laid.input_ids, (0, missing))
        filler = torch.arange(missing, device=ids.device)[None]
        positions = torch.cat([laid.position_ids, filler], 1)
        width = ids.shape[1] // self.size
        own = slice(self.rank * width, (self.rank + 1) * width)
        plan = SharedAttention(SharedPrompts(clusters), self)
        mine = replace(laid, input_ids=ids[:, own], position_ids=positions[:, own], plan=plan)
        return Slice(mine, laid.source_M, width, self)


@dataclass(frozen=True, slots=True)
class Slice:
    """A rank's tokens of a packed row, and which of its M completion tokens they predict."""

    laid: Laid
    source_M: Tensor
    width: int
    ranks: SequenceRanks

    @property
    def own_M(self) -> Tensor:
        """True where this rank's slice predicts the completion token."""
        return self.source_M // self.width == self.ranks.rank

    def states(self, states_1nD: Tensor) -> Tensor:
        """The states of this slice that predict a completion token, in their order."""
        return states_1nD[0][self.source_M[self.own_M] - self.ranks.rank * self.width]

    def join(self, values: Tensor) -> Tensor:
        """Every rank's values as one [M]; the gradient of each goes to the rank that computed it."""
        joined: Tensor = _Join.apply(values, self.source_M // self.width, self.ranks)
        return joined


@dataclass(frozen=True, slots=True)
class SharedAttention:
    """The attention plan of a slice: whole sequences for a share of the heads, by the plan of the whole row."""

    whole: SharedPrompts
    ranks: SequenceRanks

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """[1, heads, n, D] over [1, kv_heads, n, D] -> [1, n, heads, D]."""
        key, value = (self._enough(part) for part in (key, value))
        query, key, value = (_tokens_for_heads(part, self.ranks) for part in (query, key, value))
        output_1NHD = self.whole.attend(module, query, key, value, scaling)
        return _heads_for_tokens(output_1NHD, self.ranks)

    def _enough(self, part: Tensor) -> Tensor:
        repeats = self.ranks.size // part.shape[1]
        return part.repeat_interleave(repeats, 1) if repeats > 1 else part


def allows(size: int, num_heads: int, num_kv_heads: int) -> bool:
    """Whether heads can be dealt to so many ranks; fewer key-value heads than ranks are repeated."""
    return num_heads % size == 0 and (num_kv_heads % size == 0 or size % num_kv_heads == 0)


def _tokens_for_heads(part_1HnD: Tensor, ranks: SequenceRanks) -> Tensor:
    """[1, H, n, D] -> [1, H / size, N, D]."""
    _, heads, num, width = part_1HnD.shape
    dealt = part_1HnD.reshape(ranks.size, heads // ranks.size, num, width)
    met: Tensor = _AllToAll.apply(dealt, ranks)
    return met.transpose(0, 1).reshape(1, heads // ranks.size, ranks.size * num, width)


def _heads_for_tokens(part_1NHD: Tensor, ranks: SequenceRanks) -> Tensor:
    """[1, N, H / size, D] -> [1, n, H, D]."""
    _, num, heads, width = part_1NHD.shape
    dealt = part_1NHD.reshape(ranks.size, num // ranks.size, heads, width)
    met: Tensor = _AllToAll.apply(dealt, ranks)
    return met.transpose(0, 1).reshape(1, num // ranks.size, ranks.size * heads, width)


class _AllToAll(torch.autograd.Function):  # type: ignore[misc]  # mypy does not follow torch
    """Part i of dimension 0 goes to rank i; the gradient takes the same way back."""

    @staticmethod
    def forward(ctx: Any, dealt: Tensor, ranks: SequenceRanks) -> Tensor:  # Any: autograd's context
        ctx.ranks = ranks
        return _exchanged(dealt, ranks)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # Any: autograd's context
        return _exchanged(grad, ctx.ranks), None


def _exchanged(dealt: Tensor, ranks: SequenceRanks) -> Tensor:
    dealt = dealt.contiguous()
    met = torch.empty_like(dealt)
    dist.all_to_all_single(met, dealt, group=ranks.group)
    return met


class _Join(torch.autograd.Function):  # type: ignore[misc]  # mypy does not follow torch
    """All ranks' values, each at its place. Every rank has the same loss, so each value's gradient counts once."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rank_M: Tensor, ranks: SequenceRanks) -> Tensor:  # Any: autograd's context
        ctx.save_for_backward(rank_M == ranks.rank)
        counts = torch.bincount(rank_M, minlength=ranks.size).tolist()
        padded = values.new_zeros(max(counts, default=0))
        padded[: len(values)] = values
        parts = [torch.empty_like(padded) for _ in range(ranks.size)]
        dist.all_gather(parts, padded, group=ranks.group)
        joined_M = values.new_empty(len(rank_M))
        for rank, (part, count) in enumerate(zip(parts, counts, strict=True)):
            joined_M[rank_M == rank] = part[:count]
        return joined_M

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor, None, None]:  # Any: autograd's context
        (own_M,) = ctx.saved_tensors
        return grad_M[own_M], None, None
