"""A moving average of the policy's weights: smoother than the last ones, and for export alone.

w_avg = beta w_avg + (1 - beta) w   after every update, from w_avg = w at the start, in fp32
"""

from pathlib import Path

import torch
from lightrft_core.protocols import World
from torch import Tensor

from lightrft_engines.training.files import read_folder, write_folder
from lightrft_engines.training.roles import Role

FOLDER = "ema"


class Average:
    """Follows a role, each rank its part; `beta` is what one update keeps of it."""

    def __init__(self, role: Role, beta: float, world: World) -> None:
        self._role, self._beta, self._world = role, beta, world
        self._weights = {name: tensor.detach().float().clone() for name, tensor in role.learned().items()}

    def follow(self) -> None:
        """Take one update in."""
        with torch.no_grad():
            for name, tensor in self._role.learned().items():
                self._weights[name].lerp_(tensor.float(), 1.0 - self._beta)

    def give(self) -> None:
        """Make the role's weights the average."""
        self._role.set_learned(self._weights)

    def save(self, path: Path) -> None:
        """Write it."""
        write_folder(path / FOLDER, self._filed(), self._world)

    def load(self, path: Path) -> None:
        """Take it back, exactly; `UserError` for another model's or a run's that kept none."""
        for name, tensor in read_folder(path / FOLDER, self._filed()).items():
            self._weights[name].copy_(tensor)

    def _filed(self) -> dict[str, Tensor]:
        return {name: self._role.filed(name, tensor) for name, tensor in self._weights.items()}
