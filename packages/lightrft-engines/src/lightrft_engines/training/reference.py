"""The reference that a KL is measured against: the start model, or the policy of some steps ago."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from lightrft_engines.training.files import Filed, check_folder, read_folder
from lightrft_engines.training.placed import Frozen, copy_into, take_whole

FOLDER = "reference"
Result = TypeVar("Result")


class Reference:
    """A module that never learns; it is in checkpoints only once it is no longer the start model."""

    def __init__(self, place: Callable[[], Frozen], policy: Callable[[], Iterable[tuple[str, Tensor]]]) -> None:
        self._place, self._policy, self._is_renewed = place, policy, False
        self._placed = place()

    @property
    def module(self) -> nn.Module:
        """The module; outside of `run` its parameters may be shards."""
        return self._placed.module

    def awake(self) -> AbstractContextManager[None]:
        """See `placed.Frozen.awake`."""
        return self._placed.awake()

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:  # Any: the function's own
        """See `placed.Frozen.run`."""
        return self._placed.run(function, *arguments)

    def refresh(self) -> None:
        """Become the policy as it is now; all ranks call it together."""
        self._is_renewed = True
        take_whole(self._placed, self._policy())

    def folders(self) -> dict[str, Iterator[tuple[str, Filed]]]:
        """What a checkpoint holds of it: the weights, where they are not the start model's."""
        return {FOLDER: self._filed()} if self._is_renewed else {}

    def check(self, path: Path) -> None:
        """`UserError` for another model's checkpoint."""
        if (path / FOLDER).is_dir():
            check_folder(path / FOLDER, dict(self._filed()))

    def load(self, path: Path) -> None:
        """Be what it was when that checkpoint was written."""
        was_renewed = (path / FOLDER).is_dir()
        if was_renewed:
            copy_into(self._placed, read_folder(path / FOLDER, dict(self._filed())))
        elif self._is_renewed:
            self._placed = self._place()
        self._is_renewed = was_renewed

    def _filed(self) -> Iterator[tuple[str, Filed]]:
        for name, tensor in self._placed.own().items():
            yield name, self._placed.filed(name, tensor)
