"""Where the gradients of a step add up, over its passes and over ranks: one small class for each way to place weights.

One step is `begin`, then for each pass `passing` around forward and backward and `absorb` after it, then `reduce`; from
then on `tensors` holds what this rank's optimizer needs, and `norm` is that of the whole gradient on every rank.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from lightrft_core.protocols import World
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightrft_engines.world import add_over_ranks

PIECE = 1 << 20  # entries of a gradient whose squares are added up at one time


class Gradients(Protocol):
    """A step's gradients; see the module."""

    @property
    def tensors(self) -> Sequence[Tensor]:
        """One per master weight, of its shape and type, on the model's device, after `reduce`."""

    def begin(self) -> None:
        """Start at zero."""

    @contextmanager
    def passing(self, is_last: bool) -> Iterator[None]:
        """Around one forward and backward pass; `is_last` is the same on all ranks."""

    def absorb(self) -> None:
        """Take the gradients of one backward pass."""

    def reduce(self) -> None:
        """Add up over ranks."""

    def norm(self) -> float:
        """The global norm, the same on every rank; not finite where any entry is not."""

    def end(self) -> None:
        """Free them."""


class FlatGradients:
    """Whole weights, one buffer: added up in fp32 whatever the model computes in, and over ranks in one all-reduce."""

    def __init__(self, parameters: Sequence[nn.Parameter], masters: Sequence[Tensor], world: World) -> None:
        self._parameters, self._masters, self._world = parameters, masters, world
        self._buffer = torch.empty(0)

    @property
    def tensors(self) -> Sequence[Tensor]:
        """Views of the buffer."""
        views = self._buffer.split([master.numel() for master in self._masters])
        return [view.view_as(master) for view, master in zip(views, self._masters, strict=True)]

    def begin(self) -> None:
        """Parameters in full precision add to the buffer by themselves."""
        total = sum(master.numel() for master in self._masters)
        self._buffer = torch.zeros(total, dtype=self._masters[0].dtype, device=self._parameters[0].device)
        for parameter, view in zip(self._parameters, self.tensors, strict=True):
            parameter.grad = view if parameter.dtype == view.dtype else None

    @contextmanager
    def passing(self, is_last: bool) -> Iterator[None]:
        """Every pass is alike."""
        yield

    def absorb(self) -> None:
        """Those in low precision are added here."""
        for parameter, view in zip(self._parameters, self.tensors, strict=True):
            if parameter.dtype != view.dtype and parameter.grad is not None:
                view += parameter.grad
                parameter.grad = None

    def reduce(self) -> None:
        """One all-reduce."""
        add_over_ranks(self._buffer, self._world)

    def norm(self) -> float:
        """Seen whole, so that all ranks agree."""
        return math.sqrt(squares([self._buffer]))

    def end(self) -> None:
        """Drop the buffer."""
        self._buffer = torch.empty(0)
        for tensor in (*self._parameters, *self._masters):
            tensor.grad = None


class BucketGradients:
    """Whole weights under DDP: buckets are added up over ranks while the last backward pass still computes."""

    def __init__(
        self, ddp: DistributedDataParallel, parameters: Sequence[nn.Parameter], masters: Sequence[Tensor]
    ) -> None:
        self._ddp, self._parameters, self._masters = ddp, parameters, masters
        self.tensors: Sequence[Tensor] = []

    def begin(self) -> None:
        """DDP's buckets start anew."""
        self.end()

    @contextmanager
    def passing(self, is_last: bool) -> Iterator[None]:
        """Only the last pass communicates."""
        if is_last:
            yield
            return
        with self._ddp.no_sync():
            yield

    def absorb(self) -> None:
        """They add up in the parameters."""

    def reduce(self) -> None:
        """Done already; full precision for the optimizer."""
        pairs = zip(self._parameters, self._masters, strict=True)
        self.tensors = [gradient_of(parameter, parameter.grad, master.dtype) for parameter, master in pairs]

    def norm(self) -> float:
        """Every rank has the whole gradient."""
        return math.sqrt(squares(self.tensors))

    def end(self) -> None:
        """Free them."""
        self.tensors = []
        for parameter in self._parameters:
            parameter.grad = None


def gradient_of(parameter: Tensor, gradient: Tensor | None, dtype: torch.dtype) -> Tensor:
    """It in these numbers; zeros where no pass reached the parameter."""
    return torch.zeros_like(parameter, dtype=dtype) if gradient is None else gradient.to(dtype)


def squares(tensors: Sequence[Tensor]) -> float:
    """Sum of squares, in float64; piece by piece, because torch makes a float64 copy of what it takes the norm of."""
    if not tensors:
        return 0.0
    total = torch.zeros((), dtype=torch.float64, device=tensors[0].device)
    for tensor in tensors:
        for piece in tensor.flatten().split(PIECE):
            total += torch.linalg.vector_norm(piece, dtype=torch.float64).square()
    return float(total)
