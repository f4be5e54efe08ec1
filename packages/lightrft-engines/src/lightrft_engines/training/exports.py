"""Roles as Hugging Face folders: all ranks gather the weights, then one of them writes."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn


class Exported(Protocol):
    """A module and its weights, or those of the plain model that it stands for."""

    @property
    def module(self) -> nn.Module:
        """The module."""

    def served(self) -> Iterator[tuple[str, Tensor]]:
        """Whole weights, one at a time; all ranks iterate together."""


Write = Callable[..., None]  # how a model adapter exports a module
Exports = Mapping[str, tuple[Exported, Write]]  # by folder


def exporter(exports: Exports, *, in_place: bool, copied: bool, writes: bool) -> Callable[[Path], None]:
    """What writes them, on the rank that does; all ranks call it together.

    Modules are written as they are where they hold whole weights `in_place`; else whole weights are gathered in CPU
    memory, with `copied` in memory that nothing else uses.
    """
    weights = {} if in_place else {folder: _gathered(role, copied, writes) for folder, (role, _) in exports.items()}

    def write_all(path: Path) -> None:
        for folder, (role, write) in exports.items():
            own = weights.get(folder)
            write(role.module, path / folder, **({} if own is None else {"weights": own}))

    return write_all


def _gathered(role: Exported, copied: bool, is_kept: bool) -> dict[str, Tensor]:
    found = {}
    for name, tensor in role.served():
        if is_kept:
            found[name] = tensor.detach().to("cpu", copy=copied)
    return found
