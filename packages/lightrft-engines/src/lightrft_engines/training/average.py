"""A moving average of the policy's weights: smoother than the last ones, and for export alone.

w_avg = beta w_avg + (1 - beta) w   after every update, from w_avg = w at the start, in fp32
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from lightrft_engines.training.files import Filed, check_folder, read_folder
from lightrft_engines.training.roles import Role

FOLDER = "ema"


class Average:
    """Follows a role, each rank its part; `beta` is what one update keeps of it."""

    def __init__(self, role: Role, beta: float) -> None:
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

    def folders(self) -> dict[str, Iterator[tuple[str, Filed]]]:
        """What a checkpoint holds of it."""
        return {FOLDER: self._filed()}

    def check(self, path: Path) -> None:
        """`UserError` for the checkpoint of another model, or of a run that kept none."""
        check_folder(path / FOLDER, dict(self._filed()))

    def load(self, path: Path) -> None:
        """Take it back, exactly."""
        for name, tensor in read_folder(path / FOLDER, dict(self._filed())).items():
            self._weights[name].copy_(tensor)

    def _filed(self) -> Iterator[tuple[str, Filed]]:
        for name, tensor in self._weights.items():
            yield name, self._role.filed(name, tensor)
