"""A module that learns: its optimizer, its schedule, its files in a checkpoint. Policy and critic are alike in this."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lightrft_core.protocols import World
from lightrft_core.sections import LearningSection
from torch import Tensor, nn

from lightrft_engines.checkpointing import Checkpointing
from lightrft_engines.optimizer import Optimizer
from lightrft_engines.schedule import learning_rate
from lightrft_engines.tensors_io import read_tensors, write_tensors


@dataclass(frozen=True, slots=True)
class Files:
    """Names of a role's files in a checkpoint."""

    weights: str
    moments: str


@dataclass(frozen=True, slots=True)
class Saved:
    """What was read of a role, before anything takes it."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]


POLICY = Files("model.safetensors", "optimizer.safetensors")
CRITIC = Files("critic.safetensors", "critic_optimizer.safetensors")


class TrainedRole:
    """A module with its optimizer. `steps_done` counts the updates that were applied, of `num_steps` in the run."""

    def __init__(
        self, module: nn.Module, section: LearningSection, num_steps: int, files: Files, *, checkpointing: bool
    ) -> None:
        self.module, self.steps_done = module, 0
        self._section, self._num_steps, self._files = section, num_steps, files
        self._checkpointing = Checkpointing(module, checkpointing)
        self._optimizer = Optimizer(module, section)

    @property
    def rate(self) -> float:
        """The learning rate of the next update."""
        return learning_rate(self._section, self.steps_done, self._num_steps)

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Gradients start at zero; backward passes inside, each followed by `absorb`, add up."""
        self._optimizer.begin()
        with self._checkpointing:
            yield

    def absorb(self) -> None:
        """Take the gradients of one backward pass."""
        self._optimizer.absorb()

    def reduce(self, world: World) -> float:
        """Add gradients over ranks; their global norm, the same on every rank."""
        return self._optimizer.reduce(world)

    def apply(self, norm: float) -> None:
        """One update by the gathered gradients."""
        self._optimizer.apply(self.rate, norm)
        self.steps_done += 1

    def forget(self) -> None:
        """Free the gradients, applied or not."""
        self._optimizer.end()

    def weights(self) -> dict[str, Tensor]:
        """Trained parameters in full precision, frozen ones as they are."""
        return dict(self.module.named_parameters()) | self._optimizer.weights()

    def learned(self) -> dict[str, Tensor]:
        """The parameters that learn, in full precision; the frozen ones are not among them."""
        return self._optimizer.weights()

    def set_learned(self, weights: Mapping[str, Tensor]) -> None:
        """Give them other values."""
        self._optimizer.load_weights(weights)

    def save(self, path: Path) -> None:
        """Write weights and moments."""
        write_tensors(path / self._files.weights, self.weights())
        write_tensors(path / self._files.moments, self._optimizer.moments())

    def read(self, path: Path) -> Saved:
        """Read what `save` wrote; `UserError` for another model's, with nothing changed."""
        weights = read_tensors(path / self._files.weights, self.weights())
        return Saved(weights, read_tensors(path / self._files.moments, self._optimizer.moments()))

    def take(self, saved: Saved, steps_done: int) -> None:
        """Go on from there, exactly."""
        self.steps_done = steps_done
        self._optimizer.load_weights(saved.weights)
        self._optimizer.load_moments(saved.moments, steps_done)
