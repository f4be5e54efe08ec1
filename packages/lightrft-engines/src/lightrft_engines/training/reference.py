"""The reference that a KL is measured against: the start model, or the policy of some steps ago."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from lightrft_core.protocols import World
from torch import Tensor, nn

from lightrft_engines.training.files import read_folder, write_folder
from lightrft_engines.training.placed import Placed, copy_into, take_whole

FOLDER = "reference"
Result = TypeVar("Result")


class Reference:
    """A module that never learns; it is in checkpoints only once it is no longer the start model."""

    def __init__(self, place: Callable[[], Placed], world: World) -> None:
        self._place, self._world, self._is_renewed = place, world, False
        self._placed = place()

    @property
    def module(self) -> nn.Module:
        """The module; outside of `run` its parameters may be shards."""
        return self._placed.module

    def awake(self) -> AbstractContextManager[None]:
        """See `placed.Placed.awake`."""
        return self._placed.awake()

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:  # Any: the function's own
        """See `placed.Placed.run`."""
        return self._placed.run(function, *arguments)

    def refresh(self, policy: Iterable[tuple[str, Tensor]]) -> None:
        """Become these whole weights; all ranks call it together."""
        self._is_renewed = True
        take_whole(self._placed, policy)

    def save(self, path: Path) -> None:
        """Write the weights, where they are not the start model's."""
        if self._is_renewed:
            write_folder(path / FOLDER, self._filed(), self._world)

    def load(self, path: Path) -> None:
        """Be what it was when that checkpoint was written."""
        was_renewed = (path / FOLDER).is_dir()
        if was_renewed:
            copy_into(self._placed, read_folder(path / FOLDER, self._filed()))
        elif self._is_renewed:
            self._placed = self._place()
        self._is_renewed = was_renewed

    def _filed(self) -> dict[str, Tensor]:
        return {name: self._placed.filed(name, tensor) for name, tensor in self._placed.own().items()}
