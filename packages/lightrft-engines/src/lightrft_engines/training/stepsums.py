"""Metrics of an optimizer step as (sum, count) pairs: over micro-batches first, then over ranks."""

from collections.abc import Collection

from lightrft_core.data import Batch
from lightrft_core.objective import Sums, Totals
from lightrft_core.protocols import World
from torch import Tensor

SHARES = ("policy_loss", "loss")  # their counts are parts of the step's tokens, and add up to 1
LARGEST = "gap/logprob_max_abs"


class StepSums:
    """Adds up what micro-batches report; tensors stay on their device until the step is over."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self._found: dict[str, list[tuple[Tensor | float, Tensor | float]]] = {}

    def add(self, sums: Sums) -> None:
        """One micro-batch's metrics."""
        for name, pair in sums.items():
            self._found.setdefault(name, []).append(pair)

    def add_zero_rows(self, batch: Batch, rows: Collection[int]) -> None:
        """Rows that were left out because their loss and gradient are zero still count in the loss."""
        part = float(batch.mask_BT[sorted(rows)].sum()) / max(self._totals.tokens, 1.0)
        self.add(dict.fromkeys(SHARES, (0.0, part)))

    def add_gap(self, engine_BT: Tensor, trainer_BT: Tensor, mask_BT: Tensor) -> None:
        """How far the engine's log-probabilities are from the trainer's, in nats per token."""
        known_BT = mask_BT & engine_BT.isfinite()
        gap_BT = (trainer_BT - engine_BT).masked_fill(~known_BT, 0.0)
        self.add({"gap/logprob_mean_abs": (gap_BT.abs().sum(), known_BT.sum())})
        self.add({LARGEST: (gap_BT.abs().amax() if gap_BT.numel() else 0.0, 1.0)})

    def over_ranks(self, world: World) -> dict[str, tuple[float, float]]:
        """(sum, count) over all ranks; the largest gap is (value, 1)."""
        own = {name: self._own(name) for name in self._found}
        gathered = world.gather(own)
        names = dict.fromkeys(name for part in gathered for name in part)
        merged = {}
        for name in names:
            pairs = [part[name] for part in gathered if name in part]
            value = _total(name, [pair[0] for pair in pairs])
            merged[name] = (value, 1.0 if name == LARGEST else sum(pair[1] for pair in pairs))
        return merged

    def _own(self, name: str) -> list[float]:
        pairs = self._found[name]
        return [_total(name, [float(value) for value, _ in pairs]), sum(float(count) for _, count in pairs)]


def _total(name: str, values: list[float]) -> float:
    return max(values) if name == LARGEST else sum(values)
