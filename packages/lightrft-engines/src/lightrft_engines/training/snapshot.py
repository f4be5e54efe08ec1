"""One moment of a strategy on one rank: everything that a checkpoint holds of it, ready to be written."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from lightrft_core.protocols import Json, World
from safetensors.torch import load_file
from torch import Tensor

from lightrft_engines.tensors_io import write_tensors
from lightrft_engines.training.shares import AnotherRankFailed, Share

STATE = "strategy.json"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Shares by folder, random states by device, counts as JSON; `more` writes what rank 0 has beside them."""

    shares: Mapping[str, Share]
    random: Mapping[str, Tensor]
    state: Mapping[str, Json]
    more: Callable[[Path], None] | None = None

    def write(self, path: Path, world: World) -> None:
        """Write this rank's files; all ranks call it together, and `world` is theirs. Raises `OSError`.

        Shards go first: there all ranks stop where one cannot write. After them no rank waits for another.
        """
        try:
            for name, share in sorted(self.shares.items(), key=lambda item: item[1].file is not None):
                share.write(path / name, world)
        except AnotherRankFailed:
            return
        write_tensors(_random_file(path, world.rank), self.random)
        if world.rank == 0:
            (path / STATE).write_text(json.dumps(self.state, indent=2) + "\n", encoding="utf-8")
            if self.more is not None:
                self.more(path)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Of the generators that this rank draws from where nothing gives it a seed."""
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def set_random_states(path: Path, rank: int, device: torch.device) -> None:
    """Take them back, where a checkpoint has some of this rank for this kind of device."""
    file = _random_file(path, rank)
    found = load_file(file) if file.is_file() else {}
    if "cpu" in found:
        torch.set_rng_state(found["cpu"])
    if device.type == "cuda" and "cuda" in found:
        torch.cuda.set_rng_state(found["cuda"], device)


def _random_file(path: Path, rank: int) -> Path:
    return path / f"random-{rank:05d}.safetensors"
