"""A module that learns: its optimizer, its schedule, its files in a checkpoint. Policy and critic are alike in this."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from lightrft_core.protocols import World
from lightrft_core.sections import LearningSection
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu

from lightrft_engines.training.checkpointing import Checkpointing
from lightrft_engines.training.files import Filed, check_folder, read_folder
from lightrft_engines.training.loss_scale import LossScale
from lightrft_engines.training.merging import Dropping
from lightrft_engines.training.optimizer import Optimizer, moved, rules_for
from lightrft_engines.training.placed import Placed, copy_into, served
from lightrft_engines.training.schedule import learning_rate

Result = TypeVar("Result")
WEIGHTS, OPTIMIZER, SCALE = "weights", "optimizer", "loss_scale"


class Role(Protocol):
    """A module that learns. All ranks call every method together."""

    @property
    def module(self) -> nn.Module:
        """The module; outside of `run` its parameters may be shards."""

    @property
    def steps_done(self) -> int:
        """Updates that were applied."""

    @property
    def rate(self) -> float:
        """The learning rate of the next update."""

    @property
    def scale(self) -> LossScale | None:
        """How losses are scaled, where the module computes in fp16."""

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:  # Any: the function's own
        """See `placed.Frozen.run`."""

    def gather(self, passes: Sequence[Callable[[], Tensor]]) -> float:
        """Add up the gradients of what the passes return, over all of them and all ranks; the norm of the sum."""

    def apply(self, norm: float) -> None:
        """One update by the gathered gradients."""

    def forget(self) -> None:
        """Free the gradients, applied or not."""

    def served(self) -> Iterator[tuple[str, Tensor]]:
        """Whole parameters in what the module computes in, one at a time."""

    def names(self) -> list[str]:
        """Names of the served parameters."""

    def whole(self, name: str) -> Tensor:
        """One of them as it is served."""

    def learned(self) -> Mapping[str, Tensor]:
        """This rank's part of the parameters that learn, in full precision."""

    def set_learned(self, weights: Mapping[str, Tensor]) -> None:
        """Give them other values."""

    def filed(self, name: str, own: Tensor) -> Filed:
        """See `placed.Frozen.filed`."""

    def sleep(self) -> None:
        """Let what only updates need rest, where that was asked for. Checkpoints may be taken all the same."""

    def wake(self) -> None:
        """Be ready for updates."""

    def folders(self) -> dict[str, Iterator[tuple[str, Filed]]]:
        """What a checkpoint holds of it, folder by folder: this rank's part of weights and optimizer state, by name."""

    def check(self, folder: Path, *, learns: bool = True) -> None:
        """`UserError` for another model's checkpoint, before anything is changed."""

    def load(self, folder: Path, steps_done: int, *, learns: bool = True) -> None:
        """Go on from there, exactly, on any number of ranks; without `learns` only the weights are needed."""


@dataclass(frozen=True, slots=True)
class Memory:
    """How activations are kept from forward to backward pass, and where masters and optimizer state live.

    By default these are with the module. Where `rests_on` is given, state and masters lie there between updates.
    """

    checkpointing: bool
    activation_offload: bool
    reentrant: bool = False
    masters_on: torch.device | None = None
    rests_on: torch.device | None = None


class TrainedRole:
    """`Role` of a placed module and an optimizer of ours; `num_steps` are the updates of the whole run.

    With `lora` only adapters in the module learn, and nothing else of it is in checkpoints.
    """

    def __init__(
        self,
        placed: Placed,
        section: LearningSection,
        num_steps: int,
        world: World,
        memory: Memory,
        *,
        lora: bool = False,
    ) -> None:
        self.placed, self.steps_done = placed, 0
        self._section, self._num_steps, self._world = section, num_steps, world
        self._is_lora, self._dropping = lora, Dropping(placed.module) if lora else nullcontext()
        self._checkpointing = Checkpointing(placed.module, memory.checkpointing, reentrant=memory.reentrant)
        self._saving = partial(save_on_cpu, pin_memory=True) if memory.activation_offload else nullcontext
        self.scale = LossScale() if placed.dtype == torch.float16 else None
        names, own = placed.trained(), placed.own()
        masters = [placed.master(name) for name in names]
        if memory.masters_on is not None:
            masters = [moved(master, memory.masters_on) for master in masters]
        rules = rules_for(section, placed, dict(zip(names, masters, strict=True)))
        self._optimizer = Optimizer(names, [own[name] for name in names], masters, rules, section.max_grad_norm)
        self._gradients = placed.gradients(names, masters)
        self._resting = None if memory.rests_on is None else self._optimizer.resting(memory.rests_on)

    @property
    def module(self) -> nn.Module:
        """The module; outside of `run` its parameters may be shards."""
        return self.placed.module

    @property
    def rate(self) -> float:
        """The learning rate of the next update."""
        return learning_rate(self._section, self.steps_done, self._num_steps)

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:  # Any: the function's own
        """See `placed.Frozen.run`."""
        return self.placed.run(function, *arguments)

    def gather(self, passes: Sequence[Callable[[], Tensor]]) -> float:
        """See `Role.gather`."""
        factor = 1.0 if self.scale is None else self.scale.begin()
        self._gradients.begin()
        with self._checkpointing, self._dropping, self._saving():
            for number, forward in enumerate(passes, 1):
                with self._gradients.passing(is_last=number == len(passes)):
                    (forward() * factor).backward()
                self._gradients.absorb()
        self._gradients.reduce()
        if self.scale is None:
            return self._gradients.norm()
        for tensor in self._gradients.tensors:
            tensor.div_(factor)
        norm = self._gradients.norm()
        self.scale.end(is_sound=math.isfinite(norm))
        return norm

    def apply(self, norm: float) -> None:
        """One update by the gathered gradients."""
        self._optimizer.apply(self.rate, self._gradients.tensors, norm)
        self.steps_done += 1

    def forget(self) -> None:
        """Free the gradients, applied or not."""
        self._gradients.end()

    def sleep(self) -> None:
        """See `Role.sleep`."""
        if self._resting is not None:
            self._resting.sleep()

    def wake(self) -> None:
        """Be ready for updates."""
        if self._resting is not None:
            self._resting.wake()

    def served(self) -> Iterator[tuple[str, Tensor]]:
        """Whole parameters in what the module computes in, one at a time."""
        return served(self.placed)

    def names(self) -> list[str]:
        """Names of the served parameters."""
        return list(self.placed.own())

    def whole(self, name: str) -> Tensor:
        """One of them as it is served."""
        whole = self.placed.whole(name, self.placed.held(name))
        return whole.to(self.placed.dtype) if whole.is_floating_point() else whole

    def learned(self) -> Mapping[str, Tensor]:
        """This rank's part of the parameters that learn, in full precision."""
        return self._optimizer.weights()

    def set_learned(self, weights: Mapping[str, Tensor]) -> None:
        """Give them other values."""
        self._optimizer.load_weights(weights)

    def filed(self, name: str, own: Tensor) -> Filed:
        """See `placed.Frozen.filed`."""
        return self.placed.filed(name, own)

    def folders(self) -> dict[str, Iterator[tuple[str, Filed]]]:
        """Weights and moments."""
        scale = {} if self.scale is None else {SCALE: iter(self.scale.state().items())}
        return {WEIGHTS: self._weights(), OPTIMIZER: self._moments(), **scale}

    def check(self, folder: Path, *, learns: bool = True) -> None:
        """Names and shapes of both."""
        check_folder(folder / WEIGHTS, dict(self._weights()))
        if learns:
            check_folder(folder / OPTIMIZER, dict(self._moments()))

    def load(self, folder: Path, steps_done: int, *, learns: bool = True) -> None:
        """Go on from there, exactly."""
        self.wake()
        self.steps_done = steps_done
        weights = read_folder(folder / WEIGHTS, dict(self._weights()))
        if not self._is_lora:
            copy_into(self.placed, weights)
        self._optimizer.load_weights(weights)
        if learns:
            self._optimizer.load_state(read_folder(folder / OPTIMIZER, dict(self._moments())), steps_done)
        if learns and self.scale is not None and (folder / SCALE).is_dir():
            self.scale.load(read_folder(folder / SCALE, self.scale.state()))

    def _weights(self) -> Iterator[tuple[str, Filed]]:
        """Trained parameters in full precision, frozen ones as they are; of LoRA the adapters alone."""
        frozen = {} if self._is_lora else self.placed.own()
        for name, tensor in (frozen | self._optimizer.weights()).items():
            yield name, self.placed.filed(name, tensor)

    def _moments(self) -> Iterator[tuple[str, Filed]]:
        for key, tensor in self._optimizer.state().items():
            yield key, self.placed.filed(key.split(".", 1)[1], tensor)
