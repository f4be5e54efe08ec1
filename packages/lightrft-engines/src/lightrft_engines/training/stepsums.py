"""Metrics of an optimizer step as (sum, count) pairs: over micro-batches first, then over ranks."""

from collections.abc import Collection

from lightrft_core.data import Batch
from lightrft_core.objective import Sums, Totals
from lightrft_core.protocols import World
from torch import Tensor

from lightrft_engines.training.gapsums import GapSums

SHARES = ("policy_loss", "loss")  # their counts are parts of the step's tokens, and add up to 1


class StepSums:
    """Adds up what micro-batches report; tensors stay on their device until the step is over."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self._found: dict[str, list[tuple[Tensor | float, Tensor | float]]] = {}
        self.gap = GapSums()

    def add(self, sums: Sums) -> None:
        """One micro-batch's metrics."""
        for name, pair in sums.items():
            self._found.setdefault(name, []).append(pair)

    def add_zero_rows(self, batch: Batch, rows: Collection[int]) -> None:
        """Rows that were left out because their loss and gradient are zero still count in the loss."""
        part = float(batch.mask_BT[sorted(rows)].sum()) / max(self._totals.tokens, 1.0)
        self.add(dict.fromkeys(SHARES, (0.0, part)))

    def over_ranks(self, world: World) -> dict[str, tuple[float, float]]:
        """(sum, count) over all ranks."""
        gathered = world.gather({name: self._own(name) for name in self._found})
        merged: dict[str, tuple[float, float]] = {}
        for part in gathered:
            for name, (value, count) in part.items():
                total = merged.get(name, (0.0, 0.0))
                merged[name] = (total[0] + value, total[1] + count)
        return merged

    def _own(self, name: str) -> list[float]:
        pairs = self._found[name]
        return [sum(float(value) for value, _ in pairs), sum(float(count) for _, count in pairs)]
