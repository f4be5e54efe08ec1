"""A moving average of the policy's weights: smoother than the last ones, and for export alone.

w_avg = beta w_avg + (1 - beta) w   after every update, from w_avg = w at the start, in fp32
"""

from pathlib import Path

import torch

from lightrft_engines.tensors_io import read_tensors, write_tensors
from lightrft_engines.trained import TrainedRole

FILE = "ema.safetensors"


class Average:
    """Follows a role; `beta` is what one update keeps of it."""

    def __init__(self, role: TrainedRole, beta: float) -> None:
        self._role, self._beta = role, beta
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
        write_tensors(path / FILE, self._weights)

    def load(self, path: Path) -> None:
        """Take it back, exactly; `UserError` for another model's or a run's that kept none."""
        for name, tensor in read_tensors(path / FILE, self._weights).items():
            self._weights[name].copy_(tensor)
