"""What a critic minimises (PPO's clipped value loss), reduced as losses of the policy are, so that no cut changes it.

L = mean over the step's tokens of 0.5 max((V - R)^2, (V_clip - R)^2),  V_clip = V_old + clip(V - V_old, -c, c)
"""

from collections.abc import Sequence

from lightrft_core.data import Batch, Tensor
from lightrft_core.objective import Sums, Totals, reduce


def value_share(
    values_BT: Tensor, old_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, totals: Totals, clip: float | None
) -> tuple[Tensor, Sums]:
    """This cut's share of the loss, and its metrics as (sum, count) pairs. Masked entries may hold anything.

    `clip` None is the plain squared error. `value_clip_fraction` counts tokens at which the clip decides the loss.
    """
    values_BT, old_BT, returns_BT = (part.masked_fill(~mask_BT, 0.0) for part in (values_BT, old_BT, returns_BT))
    plain_BT = loss_BT = (values_BT - returns_BT) ** 2
    if clip is not None:
        held_BT = (old_BT + (values_BT - old_BT).clamp(-clip, clip) - returns_BT) ** 2
        loss_BT = plain_BT.where(plain_BT >= held_BT, held_BT)
    share = reduce(0.5 * loss_BT, mask_BT, "token_mean", totals)
    num_tokens = mask_BT.sum()
    return share, {
        "value_loss": (share.detach(), num_tokens / max(totals.tokens, 1.0)),
        "value_clip_fraction": ((loss_BT > plain_BT).sum(), num_tokens),
    }


def spread_sums(batch: Batch) -> list[float]:
    """Sums that add up over ranks, of the trained tokens: their number, R, R^2, R - V, (R - V)^2."""
    assert batch.returns_BT is not None and batch.values_BT is not None
    returns_N = batch.returns_BT[batch.mask_BT].double()
    errors_N = returns_N - batch.values_BT[batch.mask_BT].double()
    parts = (returns_N, returns_N**2, errors_N, errors_N**2)
    return [float(batch.mask_BT.sum()), *(float(part.sum()) for part in parts)]


def explained_variance(sums: Sequence[float]) -> float | None:
    """1 - Var(R - V) / Var(R) from such sums: 1 is a perfect critic, 0 one that knows the mean alone.

    None where all returns are equal.
    """
    num, returns, squares, errors, squared_errors = sums
    if num == 0:
        return None
    spread = squares / num - (returns / num) ** 2
    if spread <= 1e-12 * max(squares / num, 1e-300):
        return None
    return 1.0 - (squared_errors / num - (errors / num) ** 2) / spread
