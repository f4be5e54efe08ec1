"""Train the tokens of highest entropy alone (arXiv:2506.01939, equation 5): the forks of a chain of thought.

The threshold is the quantile over the trained tokens of all ranks, found by bisection with `world.sum`: no rank sees
another's tokens, and the result is exact.
"""

from lightrft_core.data import Batch, Tensor
from lightrft_core.protocols import World
from lightrft_core.sections import Section
from pydantic import Field


class HighEntropyConfig(Section):
    """Options of `high_entropy`."""

    ratio: float = Field(default=0.2, gt=0, le=1)
    """Share of the trained tokens to keep."""


def high_entropy(batch: Batch, world: World, *, config: HighEntropyConfig) -> Tensor:
    """Mask [B, T] of the `ratio` tokens of highest entropy; tokens that tie with the last one are kept too."""
    if batch.entropy_BT is None:
        raise ValueError("high_entropy needs the entropy of the batch")
    entropy_BT = batch.entropy_BT.double()
    values_N = entropy_BT[batch.mask_BT]
    threshold = _threshold(values_N, world, config.ratio)
    return batch.mask_BT & (entropy_BT >= threshold)


def _threshold(values_N: Tensor, world: World, ratio: float) -> float:
    """The k-th largest value of all ranks, k the rounded share of their number, at least 1; infinity without any."""
    ends = [end for end in world.gather(_ends(values_N)) if end]
    if not ends:
        return float("inf")
    count = world.sum([float(values_N.numel())])[0]
    wanted = max(1, round(ratio * count))
    low, high = float(min(end[0] for end in ends)), float(max(end[1] for end in ends))
    if world.sum([float((values_N >= high).sum())])[0] >= wanted:
        return high
    while low < (middle := low + (high - low) / 2) < high:
        if world.sum([float((values_N >= middle).sum())])[0] >= wanted:
            low = middle
        else:
            high = middle
    return low


def _ends(values_N: Tensor) -> list[float]:
    return [float(values_N.min()), float(values_N.max())] if values_N.numel() else []
