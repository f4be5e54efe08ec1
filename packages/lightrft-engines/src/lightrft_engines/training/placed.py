"""Where a module's weights lie: whole on every rank here, in shards elsewhere. Roles see no difference.

A module computes only through `run`: sharded weights are whole inside of it and nowhere else.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from lightrft_core.protocols import World
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightrft_engines.training.files import Filed
from lightrft_engines.training.gradients import BucketGradients, FlatGradients, Gradients
from lightrft_engines.training.optimizer import master_of
from lightrft_engines.training.placement import cast_parameters

Result = TypeVar("Result")
Load = Callable[[], nn.Module]


@dataclass(frozen=True, slots=True)
class Source:
    """How to get a module: with its weights on the CPU, or without memory on the meta device where that is possible.

    One that is `marked` says by its parameters' `requires_grad` which of them learn; else all do, or none. With `lora`
    there are adapters in it, and checkpoints hold nothing else of it.
    """

    load: Load
    skeleton: Load | None = None
    marked: bool = False
    lora: bool = False

    def ready(self, module: nn.Module, *, learns: bool) -> nn.Module:
        """The module, without dropout and with gradients for what learns in it."""
        return module.eval() if self.marked else module.eval().requires_grad_(learns)


class Frozen(Protocol):
    """A module in its place."""

    @property
    def module(self) -> nn.Module:
        """The module; outside of `run` its parameters may be shards."""

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""

    def awake(self) -> AbstractContextManager[None]:
        """Around calls of `run`: a module that sleeps on the CPU is on its device inside."""

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:  # Any: the function's own
        """`function(module, *arguments)` with whole weights; it returns tensors, or a tuple of them and None."""

    def own(self) -> dict[str, Tensor]:
        """This rank's part of every parameter, tied ones once; it shares memory with the module."""

    def whole(self, name: str, own: Tensor) -> Tensor:
        """From every rank's part the whole tensor, on every rank; all ranks call it together."""

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of a whole tensor that every rank has."""

    def filed(self, name: str, own: Tensor) -> Filed:
        """This rank's part as checkpoints take it: plain where it is the whole, else a DTensor on the CPU or a span."""


class Placed(Frozen, Protocol):
    """One that may learn."""

    def trained(self) -> list[str]:
        """Names of the parameters that learn."""

    def held(self, name: str) -> Tensor:
        """`own()[name]`."""

    def master(self, name: str) -> Tensor:
        """What an optimizer updates of a parameter: `own()[name]` itself, or a copy in full precision."""

    def gradients(self, names: Sequence[str], masters: Sequence[Tensor]) -> Gradients:
        """Where their gradients add up."""


class Placement(Protocol):
    """Puts modules in their places: one object for all roles of a run."""

    @property
    def lockstep(self) -> bool:
        """Whether ranks wait for each other in every pass, so that all must make as many."""

    @property
    def serves_in_place(self) -> bool:
        """Whether an engine may generate with the policy module itself."""

    def place(self, source: Source, *, learns: bool, sleeps: bool = False) -> Placed:
        """Load a module and put it in its place; all ranks call it together. One that `sleeps` rests on the CPU."""


class Whole:
    """All weights on this rank's device."""

    def __init__(
        self, module: nn.Module, dtype: torch.dtype, world: World, workplace: torch.device | None = None
    ) -> None:
        self.module, self.dtype, self._world, self._workplace = module, dtype, world, workplace

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Move it there and back, where it rests elsewhere."""
        if self._workplace is None:
            yield
            return
        self.module.to(self._workplace)
        try:
            yield
        finally:
            self.module.to("cpu")

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:  # Any: the function's own
        """Simply call it."""
        return function(self.module, *arguments)

    def own(self) -> dict[str, Tensor]:
        """The parameters."""
        return {name: parameter.detach() for name, parameter in self.module.named_parameters()}

    def trained(self) -> list[str]:
        """Those that take a gradient."""
        return [name for name, parameter in self.module.named_parameters() if parameter.requires_grad]

    def held(self, name: str) -> Tensor:
        """One of them."""
        return self.module.get_parameter(name).detach()

    def master(self, name: str) -> Tensor:
        """In bf16 a copy in fp32."""
        return master_of(self.module.get_parameter(name))

    def gradients(self, names: Sequence[str], masters: Sequence[Tensor]) -> Gradients:
        """One flat buffer."""
        return FlatGradients([self.module.get_parameter(name) for name in names], masters, self._world)

    def whole(self, name: str, own: Tensor) -> Tensor:
        """It is whole."""
        return own

    def part(self, name: str, whole: Tensor) -> Tensor:
        """All of it."""
        return whole

    def filed(self, name: str, own: Tensor) -> Tensor:
        """It is whole."""
        return own


class Bucketed(Whole):
    """The same under DDP, which overlaps the all-reduce of gradients with the last backward pass."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, world: World) -> None:
        super().__init__(module, dtype, world)
        self._ddp = DistributedDataParallel(Call(module), forward_sync_buffers=False, gradient_as_bucket_view=True)
        self._ddp.register_comm_hook(None, _sum_over_ranks)

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:  # Any: the function's own
        """Through DDP where gradients are wanted."""
        if not torch.is_grad_enabled():
            return function(self.module, *arguments)
        found: Result = self._ddp(function, *arguments)
        return found

    def gradients(self, names: Sequence[str], masters: Sequence[Tensor]) -> Gradients:
        """DDP's buckets."""
        return BucketGradients(self._ddp, [self.module.get_parameter(name) for name in names], masters)


class Call(nn.Module):  # type: ignore[misc]  # mypy does not follow torch
    """A module whose forward pass is any function of it, so that hooks on forward passes see whatever it computes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:  # Any: tensors, as `Placed.run` says
        """Call it."""
        return function(self.module, *arguments)


@dataclass(frozen=True, slots=True)
class Replicas:
    """Every rank has all weights."""

    device: torch.device
    dtype: torch.dtype
    world: World
    overlaps: bool = False

    @property
    def lockstep(self) -> bool:
        """DDP's last backward pass waits for all ranks."""
        return self.overlaps

    @property
    def serves_in_place(self) -> bool:
        """The module is an ordinary one."""
        return True

    def place(self, source: Source, *, learns: bool, sleeps: bool = False) -> Placed:
        """Cast and move it."""
        module = source.load()
        cast_parameters(module, self.dtype)
        module = source.ready(module, learns=learns)
        if sleeps:
            return Whole(module, self.dtype, self.world, self.device)
        kind = Bucketed if self.overlaps and learns else Whole
        return kind(module.to(self.device), self.dtype, self.world)


def _sum_over_ranks(state: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP would take the mean; our losses are shares of the whole batch and add up."""
    work = torch.distributed.all_reduce(bucket.buffer(), async_op=True)
    future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future


def served(placed: Frozen) -> Iterator[tuple[str, Tensor]]:
    """Whole parameters in what the module computes in, one at a time; all ranks iterate together."""
    for name, own in placed.own().items():
        yield name, placed.whole(name, own).to(placed.dtype)


def copy_into(placed: Frozen, values: Mapping[str, Tensor]) -> None:
    """Give a module other weights, part by part."""
    with torch.no_grad():
        for name, own in placed.own().items():
            own.copy_(values[name])


def take_whole(placed: Frozen, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Give a module whole weights, one at a time."""
    own = placed.own()
    with torch.no_grad():
        for name, whole in weights:
            own[name].copy_(placed.part(name, whole))
