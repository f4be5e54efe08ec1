"""The reference that a KL is measured against: the start model, or the policy of some steps ago."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from lightrft_engines.tensors_io import read_tensors, write_tensors

FILE = "reference.safetensors"


class Reference:
    """A module that never learns; it is in checkpoints only once it is no longer the start model."""

    def __init__(self, load: Callable[[], nn.Module]) -> None:
        self._load, self._is_renewed = load, False
        self.module = load().requires_grad_(False)

    def refresh(self, policy: nn.Module) -> None:
        """Become what the policy is now."""
        self._is_renewed = True
        with torch.no_grad():
            for own, its in zip(self.module.parameters(), policy.parameters(), strict=True):
                own.copy_(its)

    def save(self, path: Path) -> None:
        """Write the weights, where they are not the start model's."""
        if self._is_renewed:
            write_tensors(path / FILE, dict(self.module.named_parameters()))

    def load(self, path: Path) -> None:
        """Be what it was when that checkpoint was written."""
        own = dict(self.module.named_parameters())
        if (path / FILE).is_file():
            saved = read_tensors(path / FILE, own)
            with torch.no_grad():
                for name, parameter in own.items():
                    parameter.copy_(saved[name])
        elif self._is_renewed:
            self.module = self._load().requires_grad_(False)
        self._is_renewed = (path / FILE).is_file()
