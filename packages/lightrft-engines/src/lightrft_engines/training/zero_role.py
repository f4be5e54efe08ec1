"""Modules in DeepSpeed's hands: one that learns under any ZeRO stage, and one of stage 3 that does not."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero import GatheredParameters
from lightrft_core.protocols import World
from lightrft_core.sections import LearningSection
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu

from lightrft_engines.training.checkpointing import Checkpointing
from lightrft_engines.training.files import Filed, check_folder, read_folder
from lightrft_engines.training.gradients import squares
from lightrft_engines.training.loss_scale import LossScale
from lightrft_engines.training.merging import Dropping
from lightrft_engines.training.placed import Call
from lightrft_engines.training.roles import OPTIMIZER, WEIGHTS, Memory
from lightrft_engines.training.rules import MOMENTS, set_rate
from lightrft_engines.training.schedule import learning_rate
from lightrft_engines.training.spans import Span
from lightrft_engines.training.zero_partition import Home, part_of, partition_of, with_moments

Result = TypeVar("Result")


class ZeroRole:
    """`roles.Role` of an engine whose AdamW is `adamw`."""

    scale: LossScale | None = None  # fp16 is refused

    def __init__(
        self,
        engine: DeepSpeedEngine,
        adamw: torch.optim.AdamW,
        section: LearningSection,
        num_steps: int,
        world: World,
        memory: Memory,
        *,
        lora: bool,
    ) -> None:
        call: Call = engine.module
        self.module, self.steps_done = call.module, 0
        self._engine, self._adamw, self._world = engine, adamw, world
        self._section, self._num_steps = section, num_steps
        self._is_lora, self._dropping = lora, Dropping(self.module) if lora else nullcontext()
        self._checkpointing = Checkpointing(self.module, memory.checkpointing, reentrant=memory.reentrant)
        self._saving = partial(save_on_cpu, pin_memory=True) if memory.activation_offload else nullcontext
        self._partition = partition_of(engine)
        with_moments(adamw, self._partition.flats, MOMENTS)
        self._is_sharded = engine.zero_optimization_partition_weights()
        self._homes: dict[str, Home] = {
            name: self._partition.home(parameter)
            for name, parameter in self.module.named_parameters()
            if parameter.requires_grad
        }

    @property
    def rate(self) -> float:
        """The learning rate of the next update."""
        return learning_rate(self._section, self.steps_done, self._num_steps)

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:  # Any: the function's own
        """Through DeepSpeed's hooks where gradients or whole weights are wanted."""
        if torch.is_grad_enabled():
            return _computed(self._engine, function, *arguments)
        if not self._is_sharded:
            return function(self.module, *arguments)
        found = _computed(self._engine, function, *arguments)
        self._engine.optimizer.parameter_offload.partition_all_parameters()
        return found

    def gather(self, passes: Sequence[Callable[[], Tensor]]) -> float:
        """DeepSpeed takes the mean over ranks; our losses are shares of the whole step and add up."""
        self._partition.begin()
        is_reduced_once = not self._engine.zero_optimization_partition_gradients()
        with self._checkpointing, self._dropping, self._saving():
            for number, forward in enumerate(passes, 1):
                self._engine.set_gradient_accumulation_boundary(is_reduced_once and number == len(passes))
                self._engine.backward(forward() * self._world.size)
        self._engine.set_gradient_accumulation_boundary(True)
        self._partition.finish()
        get_accelerator().synchronize()  # gradients may still be on their way to the CPU
        return math.sqrt(self._world.sum([squares(self._partition.gradients())])[0])

    def apply(self, norm: float) -> None:
        """Clip as every strategy does, and let DeepSpeed step."""
        if 0 < self._section.max_grad_norm < norm:
            for gradient in self._partition.gradients():
                gradient.mul_(self._section.max_grad_norm / norm)
        set_rate(self._adamw, self.rate)
        self._engine.step()
        if not self._engine.was_step_applied():
            raise RuntimeError(f"DeepSpeed left out a step whose gradient has the norm {norm}")
        self.steps_done += 1

    def forget(self) -> None:
        """Free the gradients, applied or not."""
        self._partition.clear()

    def sleep(self) -> None:
        """DeepSpeed keeps it where it is."""

    def wake(self) -> None:
        """It is there."""

    def served(self) -> Iterator[tuple[str, Tensor]]:
        """Whole parameters in what the module computes in, one at a time."""
        for name in self.names():
            yield name, self.whole(name)

    def names(self) -> list[str]:
        """Names of the served parameters."""
        return [name for name, _ in self.module.named_parameters()]

    def whole(self, name: str) -> Tensor:
        """One of them as it is served."""
        parameter = self.module.get_parameter(name)
        if not self._is_sharded:
            return parameter.detach()
        with GatheredParameters([parameter]):
            return parameter.detach().clone()

    def learned(self) -> dict[str, Tensor]:
        """This rank's part of the parameters that learn, in full precision: [N] of each."""
        return {name: home.of(home.flat) for name, home in self._homes.items()}

    def set_learned(self, weights: Mapping[str, Tensor]) -> None:
        """Give them other values."""
        self._write(weights)

    def filed(self, name: str, own: Tensor) -> Filed:
        """A span of it."""
        return Span(own, self._homes[name].start, self._shape(name))

    def folders(self) -> dict[str, Iterator[tuple[str, Filed]]]:
        """Weights and moments: spans of this rank."""
        return {WEIGHTS: iter(self._weights().items()), OPTIMIZER: iter(self._moments().items())}

    def check(self, folder: Path, *, learns: bool = True) -> None:
        """Names and shapes of both."""
        check_folder(folder / WEIGHTS, self._weights())
        if learns:
            check_folder(folder / OPTIMIZER, self._moments())

    def load(self, folder: Path, steps_done: int, *, learns: bool = True) -> None:
        """Go on from there, exactly; each rank reads its part of what any strategy wrote."""
        self.steps_done = steps_done
        self._write(read_folder(folder / WEIGHTS, self._weights()))
        if not learns:
            return
        own = self._moments()
        for key, entries_N in read_folder(folder / OPTIMIZER, own).items():
            own[key].entries_N.copy_(entries_N)
        for flat in self._partition.flats:
            self._adamw.state[flat]["step"].fill_(steps_done)

    def _weights(self) -> dict[str, Filed]:
        """Trained parameters in full precision, frozen ones as they are; of LoRA the adapters alone."""
        learned = {name: self.filed(name, own_N) for name, own_N in self.learned().items()}
        return learned if self._is_lora else learned | self._frozen()

    def _frozen(self) -> dict[str, Filed]:
        frozen = {name: item for name, item in self.module.named_parameters() if name not in self._homes}
        return {name: part_of(item) if self._is_sharded else item.detach() for name, item in frozen.items()}

    def _moments(self) -> dict[str, Span]:
        return {
            f"{moment}.{name}": Span(home.of(self._adamw.state[home.flat][moment]), home.start, self._shape(name))
            for moment in MOMENTS
            for name, home in self._homes.items()
        }

    def _write(self, weights: Mapping[str, Tensor]) -> None:
        if self._is_sharded:  # before, so that no whole copy outlives it
            self._engine.optimizer.parameter_offload.partition_all_parameters()
            _drop_second_copies(self.module)
        targets = self.learned() | {name: _entries(item) for name, item in self._frozen().items()}
        with torch.no_grad():
            for name, value in weights.items():
                targets[name].copy_(value)
            self._partition.publish()

    def _shape(self, name: str) -> torch.Size:
        parameter = self.module.get_parameter(name)
        shape: torch.Size = parameter.ds_shape if self._is_sharded else parameter.shape
        return shape


class ZeroFrozen:
    """`placed.Frozen` of an engine that only computes, in stage 3."""

    def __init__(self, engine: DeepSpeedEngine, dtype: torch.dtype) -> None:
        self.module: nn.Module = engine.module.module
        self.dtype, self._engine = dtype, engine

    def awake(self) -> nullcontext[None]:
        """It is never asleep: parts that rest on the CPU are fetched one module at a time."""
        return nullcontext()

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:  # Any: the function's own
        """Through DeepSpeed's hooks."""
        found = _computed(self._engine, function, *arguments)
        self._engine.optimizer.partition_all_parameters()
        return found

    def own(self) -> dict[str, Tensor]:
        """This rank's part of every parameter: [N]."""
        self._engine.optimizer.partition_all_parameters()
        _drop_second_copies(self.module)
        return {name: part_of(parameter).entries_N for name, parameter in self.module.named_parameters()}

    def whole(self, name: str, own: Tensor) -> Tensor:
        """From every rank's part."""
        return self._span(name).holding(own).whole()

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of it."""
        return self._span(name).cut(whole)

    def filed(self, name: str, own: Tensor) -> Filed:
        """A span of it."""
        return self._span(name).holding(own)

    def _span(self, name: str) -> Span:
        return part_of(self.module.get_parameter(name))


def _computed(engine: DeepSpeedEngine, function: Callable[..., Result], *arguments: Any) -> Result:
    """What the function returns. One tensor leaves the module: each has a hook in the backward pass, which must be
    called as often on every rank, and ranks' losses need not use the same of them.
    """
    shapes: list[torch.Size | None] = []

    def joined(module: nn.Module, *arguments: Any) -> Tensor:  # Any: the function's own
        found: Any = function(module, *arguments)  # Any: a tensor, or a tuple of them and None
        parts = found if isinstance(found, tuple) else (found,)
        shapes.extend(None if part is None else part.shape for part in parts)
        return torch.cat([part.flatten() for part in parts if part is not None])

    entries_N = engine(joined, *arguments)
    pieces = iter(entries_N.split([shape.numel() for shape in shapes if shape is not None]))
    found = tuple(None if shape is None else next(pieces).view(shape) for shape in shapes)
    return cast(Result, found if len(found) > 1 else found[0])


def _entries(item: Filed) -> Tensor:
    return item.entries_N if isinstance(item, Span) else item


def _drop_second_copies(module: nn.Module) -> None:
    """ZeRO++ keeps one of what is about to change."""
    for parameter in module.parameters():
        parameter.ds_secondary_tensor = None
