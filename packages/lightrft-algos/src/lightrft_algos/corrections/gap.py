"""The gap between what the engine sampled from and what the trainer computes, as ratios and as metrics.

    w = exp(l_old - l_engine), per token, per sequence by the sum over its tokens, or by their mean (geometric)

Both log-probabilities are of one policy version; they differ by kernels, precision and the sampler's temperature. Where
top-p, top-k or min-p cut, the engine's are of the renormalised rest: the mean of w is then the mass that was kept.
"""

from collections.abc import Mapping
from typing import Literal

from lightrft_core.data import Batch, Tensor
from lightrft_core.protocols import World

Level = Literal["token", "sequence", "geometric"]


def gap(batch: Batch) -> Tensor:
    """`l_old - l_engine` at trained tokens, 0 elsewhere [B, T], in nats."""
    if batch.old_logprobs_BT is None:
        raise ValueError("a correction needs the trainer's log-probabilities of the batch")
    return (batch.old_logprobs_BT - batch.engine_logprobs_BT).masked_fill(~batch.mask_BT, 0.0)


def log_weights(gap_BT: Tensor, batch: Batch, level: Level) -> Tensor:
    """Logarithms of the ratios [B, T], before any bound; `ratios.bounded` holds them within +-20 before `exp`."""
    if level == "token":
        return gap_BT
    total_B1 = gap_BT.sum(-1, keepdim=True)
    if level == "geometric":
        total_B1 = total_B1 / batch.mask_BT.sum(-1, keepdim=True).clamp(min=1)
    return total_B1.expand(batch.mask_BT.shape)


def gap_metrics(
    gap_BT: Tensor, shares: Mapping[str, Tensor], weights_BT: Tensor, mask_BT: Tensor, world: World
) -> Mapping[str, float]:
    """Means over the trained tokens of all ranks, and the largest gap; gaps in nats.

    `shares` names marked tokens [B, T], such as those out of bounds; each becomes the share that is marked.
    """
    sizes_BT = gap_BT.double().abs()
    sums = {
        "gap_mean": sizes_BT,
        "engine_kl": -gap_BT.double(),
        "weight_mean": weights_BT.double(),
        **{name: marked_BT.double() for name, marked_BT in shares.items()},
    }
    own = [float(values_BT.masked_fill(~mask_BT, 0.0).sum()) for values_BT in sums.values()]
    count, *totals = world.sum([float(mask_BT.sum()), *own])
    largest = max(world.gather(float(sizes_BT.max()) if sizes_BT.numel() else 0.0))
    means = {f"correction/{name}": total / max(count, 1.0) for name, total in zip(sums, totals, strict=True)}
    return {**means, "correction/gap_max": largest}
