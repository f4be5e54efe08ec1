"""The gap between what the engine sampled from and what the trainer computes, as ratios and as metrics.

    w = exp(l_old - l_engine), per token, per sequence by the sum over its tokens, or by their mean (geometric)

Both log-probabilities are of one policy version; they differ by kernels, precision and the sampler's temperature. Where
top-p, top-k or min-p cut, the engine's are of the renormalised rest: the mean of w is then the mass that was kept.
"""

from collections.abc import Mapping
from typing import Literal

from lightrft_core.data import Batch, Tensor
from lightrft_core.protocols import World

MAX_LOG_WEIGHT = 20.0
Level = Literal["token", "sequence", "geometric"]


def gap(batch: Batch) -> Tensor:
    """`l_old - l_engine` at trained tokens, 0 elsewhere [B, T], in nats."""
    if batch.old_logprobs_BT is None:
        raise ValueError("a correction needs the trainer's log-probabilities of the batch")
    return (batch.old_logprobs_BT - batch.engine_logprobs_BT).masked_fill(~batch.mask_BT, 0.0)


def weights(gap_BT: Tensor, batch: Batch, level: Level) -> Tensor:
    """Ratios [B, T] before any bound; the logarithm is held within +-20."""
    if level != "token":
        total_B1 = gap_BT.sum(-1, keepdim=True)
        if level == "geometric":
            total_B1 = total_B1 / batch.mask_BT.sum(-1, keepdim=True).clamp(min=1)
        gap_BT = total_B1.expand(batch.mask_BT.shape)
    return gap_BT.clamp(-MAX_LOG_WEIGHT, MAX_LOG_WEIGHT).exp()


def gap_metrics(
    gap_BT: Tensor, outside: tuple[str, Tensor], weights_BT: Tensor, mask_BT: Tensor, world: World
) -> Mapping[str, float]:
    """Means over the trained tokens of all ranks, and the largest gap; gaps in nats.

    `outside` names the metric of the tokens out of bounds, and marks them.
    """
    sizes_BT = gap_BT.double().abs()
    totals = [
        float(mask_BT.sum()),
        float(sizes_BT.sum()),
        -float(gap_BT.double().sum()),
        float((outside[1] & mask_BT).sum()),
        float(weights_BT.double().masked_fill(~mask_BT, 0.0).sum()),
    ]
    count, size, kl, bounded, weight = world.sum(totals)
    largest = max(world.gather(float(sizes_BT.max()) if sizes_BT.numel() else 0.0))
    num = max(count, 1.0)
    return {
        "correction/gap_mean": size / num,
        "correction/gap_max": largest,
        "correction/engine_kl": kl / num,
        f"correction/{outside[0]}": bounded / num,
        "correction/weight_mean": weight / num,
    }
