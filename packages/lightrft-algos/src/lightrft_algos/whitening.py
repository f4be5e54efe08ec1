"""Whitening: advantages less their mean, in units of their spread, over the trained tokens of all ranks.

    A' = (A - mean) / sqrt(max(var, 1e-8)),  var with n

The floor under the variance is REINFORCE++'s (arXiv:2501.03262, equation 9; OpenRLHF's experience maker). At most one
normalisation happens in a run: what divides by a group's spread already refuses this one.
"""

from lightrft_core.data import Batch, Tensor
from lightrft_core.protocols import World

MIN_VARIANCE = 1e-8


def whiten(values_BT: Tensor, batch: Batch, world: World) -> Tensor:
    """Whitened values, 0 at tokens that do not train or whose row is not scored; float64 [B, T].

    Values that are all equal, on all ranks, give exactly 0, whatever rounding makes of their mean.
    """
    kept_BT = batch.mask_BT & batch.scored_B.unsqueeze(1)
    kept_N = values_BT.double()[kept_BT]
    ends = [end for end in world.gather([float(kept_N.min()), float(kept_N.max())] if kept_N.numel() else []) if end]
    total, count = world.sum([float(kept_N.sum()), float(kept_N.numel())])
    mean = total / max(count, 1.0)
    squares = world.sum([float(((kept_N - mean) ** 2).sum())])[0]
    if not ends or min(end[0] for end in ends) == max(end[1] for end in ends):
        return values_BT.new_zeros(values_BT.shape).double()
    scale = max(squares / count, MIN_VARIANCE) ** 0.5
    return ((values_BT.double() - mean) / scale).masked_fill(~kept_BT, 0.0)


def finished(values_BT: Tensor, batch: Batch, limit: float | None) -> Tensor:
    """What an advantage returns: clipped to +-`limit` where given, of the rewards' type, without -0. [B, T]."""
    limited_BT = values_BT if limit is None else values_BT.clamp(-limit, limit)
    return (limited_BT + 0.0).to(batch.rewards_B.dtype).masked_fill(~batch.mask_BT, 0.0)
