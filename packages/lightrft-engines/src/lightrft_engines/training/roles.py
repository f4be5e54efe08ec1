"""A module that learns: its optimizer, its schedule, its files in a checkpoint. Policy and critic are alike in this."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lightrft_core.protocols import World
from lightrft_core.sections import LearningSection
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu

from lightrft_engines.training.checkpointing import Checkpointing
from lightrft_engines.training.files import read_folder, write_folder
from lightrft_engines.training.optimizer import Optimizer
from lightrft_engines.training.placed import Placed, copy_into, served
from lightrft_engines.training.schedule import learning_rate

Result = TypeVar("Result")
WEIGHTS, OPTIMIZER = "weights", "optimizer"


@dataclass(frozen=True, slots=True)
class Saved:
    """What was read of a role, before anything takes it."""

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]


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

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:  # Any: the function's own
        """See `placed.Placed.run`."""

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

    def filed(self, name: str, own: Tensor) -> Tensor:
        """See `placed.Placed.filed`."""

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state below a folder."""

    def read(self, folder: Path) -> Saved:
        """Read what `save` wrote, on any number of ranks; `UserError` for another model's, with nothing changed."""

    def take(self, saved: Saved, steps_done: int) -> None:
        """Go on from there, exactly."""


@dataclass(frozen=True, slots=True)
class Memory:
    """How activations are kept from forward to backward pass."""

    checkpointing: bool
    activation_offload: bool


class TrainedRole:
    """`Role` of a placed module and an optimizer of ours; `num_steps` are the updates of the whole run."""

    def __init__(self, placed: Placed, section: LearningSection, num_steps: int, world: World, memory: Memory) -> None:
        self.placed, self.steps_done = placed, 0
        self._section, self._num_steps, self._world = section, num_steps, world
        self._checkpointing = Checkpointing(placed.module, memory.checkpointing)
        self._saving = partial(save_on_cpu, pin_memory=True) if memory.activation_offload else nullcontext
        names, own = placed.trained(), placed.own()
        masters = [placed.master(name) for name in names]
        self._optimizer = Optimizer(names, [own[name] for name in names], masters, section)
        self._gradients = placed.gradients(names, masters)

    @property
    def module(self) -> nn.Module:
        """The module; outside of `run` its parameters may be shards."""
        return self.placed.module

    @property
    def rate(self) -> float:
        """The learning rate of the next update."""
        return learning_rate(self._section, self.steps_done, self._num_steps)

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:  # Any: the function's own
        """See `placed.Placed.run`."""
        return self.placed.run(function, *arguments)

    def gather(self, passes: Sequence[Callable[[], Tensor]]) -> float:
        """See `Role.gather`."""
        self._gradients.begin()
        with self._checkpointing, self._saving():
            for number, forward in enumerate(passes, 1):
                with self._gradients.passing(is_last=number == len(passes)):
                    forward().backward()
                self._gradients.absorb()
        self._gradients.reduce()
        return self._gradients.norm()

    def apply(self, norm: float) -> None:
        """One update by the gathered gradients."""
        self._optimizer.apply(self.rate, self._gradients.tensors, norm)
        self.steps_done += 1

    def forget(self) -> None:
        """Free the gradients, applied or not."""
        self._gradients.end()

    def served(self) -> Iterator[tuple[str, Tensor]]:
        """Whole parameters in what the module computes in, one at a time."""
        return served(self.placed)

    def names(self) -> list[str]:
        """Names of the served parameters."""
        return list(self.placed.own())

    def whole(self, name: str) -> Tensor:
        """One of them as it is served."""
        return self.placed.whole(name, self.placed.own()[name]).to(self.placed.dtype)

    def learned(self) -> Mapping[str, Tensor]:
        """This rank's part of the parameters that learn, in full precision."""
        return self._optimizer.weights()

    def set_learned(self, weights: Mapping[str, Tensor]) -> None:
        """Give them other values."""
        self._optimizer.load_weights(weights)

    def filed(self, name: str, own: Tensor) -> Tensor:
        """See `placed.Placed.filed`."""
        return self.placed.filed(name, own)

    def save(self, folder: Path) -> None:
        """Write weights and moments."""
        write_folder(folder / WEIGHTS, self._weights(), self._world)
        write_folder(folder / OPTIMIZER, self._moments(), self._world)

    def read(self, folder: Path) -> Saved:
        """Read what `save` wrote."""
        weights = read_folder(folder / WEIGHTS, self._weights())
        return Saved(weights, read_folder(folder / OPTIMIZER, self._moments()))

    def take(self, saved: Saved, steps_done: int) -> None:
        """Go on from there, exactly."""
        self.steps_done = steps_done
        copy_into(self.placed, saved.weights)
        self._optimizer.load_weights(saved.weights)
        self._optimizer.load_moments(saved.moments, steps_done)

    def _weights(self) -> dict[str, Tensor]:
        """Trained parameters in full precision, frozen ones as they are."""
        own = self.placed.own() | self._optimizer.weights()
        return {name: self.placed.filed(name, tensor) for name, tensor in own.items()}

    def _moments(self) -> dict[str, Tensor]:
        moments = self._optimizer.moments()
        return {key: self.placed.filed(key.split(".", 1)[1], tensor) for key, tensor in moments.items()}
