"""What checkpoints hold of a strategy: taken as one snapshot, and given back on any number of ranks."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import torch
from lightrft_core.errors import UserError
from lightrft_core.protocols import Json, World

from lightrft_engines.training.files import Filed
from lightrft_engines.training.roles import Role
from lightrft_engines.training.shares import share_of
from lightrft_engines.training.snapshot import STATE, Snapshot, random_states, set_random_states

FORMAT: Final = 3


class Holder(Protocol):
    """Something beside the roles that has folders of its own in a checkpoint."""

    def folders(self) -> dict[str, Iterator[tuple[str, Filed]]]:
        """This rank's part of its tensors, by folder and name."""

    def check(self, path: Path) -> None:
        """`UserError` for what it cannot go on from, before anything is changed."""

    def load(self, path: Path) -> None:
        """Go on from there, exactly."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Roles by name and what else there is; `dtype` is what they compute in."""

    roles: Mapping[str, Role]
    holders: Sequence[Holder]
    world: World
    device: torch.device
    dtype: torch.dtype

    def snapshot(self, *, copied: bool, more: Callable[[Path], None] | None = None) -> Snapshot:
        """Everything as it is now, with `copied` as a copy on the CPU; all ranks call it together."""
        folders = {f"{name}/{key}": items for name, role in self.roles.items() for key, items in role.folders().items()}
        for holder in self.holders:
            folders |= holder.folders()
        shares = {folder: share_of(items, self.world, copied=copied) for folder, items in folders.items()}
        steps = {name: role.steps_done for name, role in self.roles.items()}
        state: Json = {"format": FORMAT, "steps": steps, "dtype": str(self.dtype).removeprefix("torch.")}
        return Snapshot(shares, random_states(self.device), state, more)

    def load(self, path: Path, *, learns: bool) -> torch.dtype:
        """Take everything back, without `learns` all but optimizer states; returns the `dtype` that was written.

        `UserError` for what belongs to another model, with nothing changed. Each rank reads for itself.
        """
        state = _read_state(path)
        for name, role in self.roles.items():
            role.check(path / name, learns=learns)
        for holder in self.holders:
            holder.check(path)
        for name, role in self.roles.items():
            role.load(path / name, int(state["steps"][name]), learns=learns)
        for holder in self.holders:
            holder.load(path)
        set_random_states(path, self.world.rank, self.device)
        dtype: torch.dtype = getattr(torch, state["dtype"])
        return dtype


def _read_state(path: Path) -> dict[str, Json]:
    state: dict[str, Json] = json.loads((path / STATE).read_text(encoding="utf-8"))
    if state["format"] != FORMAT:
        raise UserError(
            f"{STATE} has format {state['format']}, and this version reads {FORMAT}.",
            where=str(path),
            hint="Export it with the version that wrote it, and start a run from the export.",
        )
    return state
