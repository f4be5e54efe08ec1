"""The gap between engine and trainer, added up on the device; see `lightrft_core.gap`.

What is measured is there anyway: the log-probabilities of the passes that train, or those filled before.
"""

from dataclasses import replace

import torch
from lightrft_core.gap import BINS_PER_OCTAVE, LARGEST, NUM_BINS, SMALLEST, Gap, merged
from lightrft_core.protocols import World
from torch import Tensor

BOUND = 20.0  # nats: exp of more says nothing


class GapSums:
    """Adds up what micro-batches find; nothing waits for the device until the step is over."""

    def __init__(self) -> None:
        self._figures: list[Tensor] = []
        self._counts: Tensor | None = None

    def add(self, engine_BT: Tensor, trainer_BT: Tensor, mask_BT: Tensor) -> None:
        """Tokens of the mask that the engine gave a log-probability."""
        if not mask_BT.numel():
            return
        known_BT = mask_BT & engine_BT.isfinite()
        gap_BT = (trainer_BT.float() - engine_BT).masked_fill(~known_BT, 0.0)
        size_BT, bounded_BT = gap_BT.abs(), gap_BT.clamp(-BOUND, BOUND)
        ratio_BT = bounded_BT.exp().masked_fill(~known_BT, 0.0)
        error_BT = bounded_BT.abs().exp().masked_fill(~known_BT, 0.0)
        figures = (known_BT.sum(), size_BT.sum(), size_BT.amax(), ratio_BT.sum(), ratio_BT.amax(), error_BT.sum())
        self._figures.append(torch.stack([figure.float() for figure in figures]))
        counts = _counts(size_BT, known_BT)
        self._counts = counts if self._counts is None else self._counts + counts

    def over_ranks(self, world: World) -> Gap | None:
        """All ranks' tokens as one gap, the same on every rank; all ranks call it together."""
        own = merged(self._own())
        gathered = world.gather(None if own is None else own.to_json())
        return merged(None if item is None else Gap.from_json(item) for item in gathered)

    def _own(self) -> list[Gap]:
        if self._counts is None:
            return []
        first, *rest = [Gap(*figures) for figures in torch.stack(self._figures).tolist()]
        bins = self._counts[:NUM_BINS].tolist()
        counts = tuple((number, count) for number, count in enumerate(bins) if count)
        return [replace(first, counts=counts), *rest]


def _counts(size_BT: Tensor, known_BT: Tensor) -> Tensor:
    """Tokens by bin; one more bin for what is not known."""
    size_BT = size_BT.nan_to_num(nan=LARGEST, posinf=LARGEST)
    place_BT = ((size_BT / SMALLEST).log2() * BINS_PER_OCTAVE).floor().clamp(0, NUM_BINS - 1)
    place_N = place_BT.masked_fill(~known_BT, NUM_BINS).long().flatten()
    return torch.zeros(NUM_BINS + 1, dtype=torch.long, device=place_N.device).index_add_(
        0, place_N, torch.ones_like(place_N)
    )
