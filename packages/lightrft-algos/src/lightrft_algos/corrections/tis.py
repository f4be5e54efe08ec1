"""Truncated importance sampling (fengyao.notion.site/off-policy-rl): undo the gap between engine and trainer.

    w = min(exp(l_old - l_engine), cap), per token, or per sequence with the sums over its tokens

Both log-probabilities are of one policy version; they differ by kernels, precision and truncated sampling.
"""

from collections.abc import Mapping
from typing import Literal

from lightrft_core.data import Batch, Tensor
from lightrft_core.protocols import Corrected, World
from lightrft_core.sections import Section
from pydantic import Field

MAX_LOG_WEIGHT = 20.0


class TisConfig(Section):
    """Options of `tis`."""

    cap: float = Field(default=2.0, gt=0)
    """Largest weight."""
    level: Literal["token", "sequence"] = "token"
    """Weigh every token by its own ratio, or all tokens of a completion by its whole ratio."""


def tis(batch: Batch, world: World, *, config: TisConfig) -> Corrected:
    """Weights [B, T], 1 at tokens that do not train."""
    if batch.old_logprobs_BT is None:
        raise ValueError("tis needs the trainer's log-probabilities of the batch")
    mask_BT = batch.mask_BT
    gap_BT = (batch.old_logprobs_BT - batch.engine_logprobs_BT).masked_fill(~mask_BT, 0.0)
    log_weights_BT = gap_BT if config.level == "token" else gap_BT.sum(-1, keepdim=True).expand(mask_BT.shape)
    free_BT = log_weights_BT.clamp(-MAX_LOG_WEIGHT, MAX_LOG_WEIGHT).exp()
    weights_BT = free_BT.clamp(max=config.cap).masked_fill(~mask_BT, 1.0)
    return Corrected(weights_BT, metrics=_metrics(gap_BT, free_BT > config.cap, weights_BT, mask_BT, world))


def _metrics(
    gap_BT: Tensor, is_capped_BT: Tensor, weights_BT: Tensor, mask_BT: Tensor, world: World
) -> Mapping[str, float]:
    """Means over the trained tokens of all ranks, and the largest gap; gaps in nats."""
    sizes_BT = gap_BT.double().abs()
    totals = [
        float(mask_BT.sum()),
        float(sizes_BT.sum()),
        -float(gap_BT.double().sum()),
        float((is_capped_BT & mask_BT).sum()),
        float(weights_BT.double().masked_fill(~mask_BT, 0.0).sum()),
    ]
    count, size, kl, capped, weight = world.sum(totals)
    largest = max(world.gather(float(sizes_BT.max()) if sizes_BT.numel() else 0.0))
    num = max(count, 1.0)
    return {
        "correction/gap_mean": size / num,
        "correction/gap_max": largest,
        "correction/engine_kl": kl / num,
        "correction/capped_fraction": capped / num,
        "correction/weight_mean": weight / num,
    }
