"""How many of torch's threads a decode step uses: one alone where its matrix products are short."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SMALLEST = 1 << 24
"""Multiply-adds of a product that a second thread shortens, about a third of a millisecond of one core: measured with
threads that sleep between operations, where waking one takes as long as many small operations."""


class StepThreads:
    """For steps of one module on a CPU; elsewhere nothing is changed. Only the shape decides, so runs repeat."""

    def __init__(self, module: nn.Module) -> None:
        sizes: list[int] = [
            tensor.numel()
            for layer in module.modules()
            if not isinstance(layer, nn.Embedding)  # looked up, not multiplied
            for tensor in (*layer._parameters.values(), *layer._buffers.values())
            if isinstance(tensor, Tensor) and tensor.dim() == 2
        ]
        self._mean_size = sum(sizes) / max(1, len(sizes))
        self._is_cpu: bool = next(module.parameters()).device.type == "cpu"

    def suffices_one(self, num_rows: int) -> bool:
        """Whether the mean product of a step of so many rows is shorter than `SMALLEST`."""
        return self._is_cpu and num_rows * self._mean_size < SMALLEST

    @contextmanager
    def for_rows(self, num_rows: int) -> Iterator[None]:
        """Around one step; afterwards torch has its threads again."""
        num = torch.get_num_threads()
        if num == 1 or not self.suffices_one(num_rows):
            yield
            return
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(num)
