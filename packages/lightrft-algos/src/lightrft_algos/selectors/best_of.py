"""Best of n, or rejection sampling (RAFT, arXiv:2304.06767): of each group only the best rows train.

With the advantage `reinforce`, the loss `reinforce` and rewards of 0 and 1 this is fine-tuning on the best answers.
"""

from lightrft_core.data import Batch, Tensor, seed_for
from lightrft_core.protocols import World
from lightrft_core.sections import Section
from pydantic import Field


class BestOfConfig(Section):
    """Options of `best_of`."""

    keep: int = Field(default=1, ge=1)
    """Rows of each group that train."""
    min_reward: float | None = None
    """Rows below it never train, even if no better one is there; by default there is no such bound."""


def best_of(batch: Batch, world: World, *, config: BestOfConfig) -> Tensor:
    """Mask [B, T] of the `keep` rows of highest shaped reward of each group; ties by chance, reproducibly."""
    by_group: dict[int, list[tuple[float, int, int]]] = {}
    scored, lengths = batch.scored_B.tolist(), batch.lengths_B.tolist()
    for row, (reward, number) in enumerate(zip(batch.rewards_B.tolist(), batch.group_B.tolist(), strict=True)):
        if scored[row] and (config.min_reward is None or reward >= config.min_reward):
            tie = seed_for(0, *batch.completion_ids_BT[row, : lengths[row]].tolist())
            by_group.setdefault(number, []).append((-reward, tie, row))
    kept = {row for ranked in by_group.values() for *_, row in sorted(ranked)[: config.keep]}
    is_kept_B = batch.scored_B.new_tensor([row in kept for row in range(len(batch))])
    return batch.mask_BT & is_kept_B.unsqueeze(1)
