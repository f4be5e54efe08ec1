"""Rewards of siblings. Groups are found by their number in `group_B`, never by position, and statistics are taken in
float64 over the scored rows alone.
"""

from dataclasses import dataclass

from lightrft_core.data import Batch, Tensor


@dataclass(frozen=True, slots=True)
class Siblings:
    """Every row's reward beside its group's statistics; all float64 [B] but `is_constant_B` (bool).

    `rewards_B` and `centered_B` (reward less the group's mean) are 0 in rows that are not scored. `is_constant_B` says
    that all scored siblings have one reward: then `centered_B` is exactly 0, whatever rounding makes of the mean.
    """

    rewards_B: Tensor
    centered_B: Tensor
    count_B: Tensor
    is_constant_B: Tensor

    def std(self, group_B: Tensor) -> Tensor:
        """Standard deviation [B] of each row's group, with n-1; 0 for a group of one."""
        ids_B, num_groups = _numbered(group_B)
        squares_G = self.centered_B.new_zeros(num_groups).index_add(0, ids_B, self.centered_B**2)
        return (squares_G[ids_B] / (self.count_B - 1).clamp(min=1)).sqrt()


def siblings(batch: Batch) -> Siblings:
    """Statistics of the batch's groups, over `rewards_B` plus the sum of each row's trained token rewards."""
    ids_B, num_groups = _numbered(batch.group_B)
    scored_B = batch.scored_B
    rewards_B = sequence_rewards(batch)
    zeros_G = rewards_B.new_zeros(num_groups)
    count_B = zeros_G.index_add(0, ids_B, scored_B.to(rewards_B.dtype))[ids_B]
    mean_B = zeros_G.index_add(0, ids_B, rewards_B)[ids_B] / count_B.clamp(min=1)
    infinity = float("inf")
    lowest_G = (zeros_G + infinity).scatter_reduce(0, ids_B, rewards_B.masked_fill(~scored_B, infinity), "amin")
    highest_G = (zeros_G - infinity).scatter_reduce(0, ids_B, rewards_B.masked_fill(~scored_B, -infinity), "amax")
    is_constant_B = (lowest_G >= highest_G)[ids_B]
    centered_B = (rewards_B - mean_B).masked_fill(~scored_B | is_constant_B, 0.0)
    return Siblings(rewards_B, centered_B, count_B, is_constant_B)


def sequence_rewards(batch: Batch) -> Tensor:
    """Reward plus token rewards of each row, float64 [B]; 0 where the row is not scored."""
    rewards_B = batch.rewards_B.double()
    if batch.token_rewards_BT is not None:
        rewards_B = rewards_B + batch.token_rewards_BT.double().masked_fill(~batch.mask_BT, 0.0).sum(-1)
    return rewards_B.masked_fill(~batch.scored_B, 0.0)


def on_tokens(values_B: Tensor, batch: Batch, limit: float | None) -> Tensor:
    """Each row's value at its trained tokens, 0 elsewhere; clipped to +-`limit` where given. [B, T], the rewards' type.

    Adding 0 turns -0 into 0.
    """
    limited_B = values_B if limit is None else values_B.clamp(-limit, limit)
    spread_BT = (limited_B + 0.0).to(batch.rewards_B.dtype).unsqueeze(1).expand(batch.mask_BT.shape)
    return spread_BT.masked_fill(~batch.mask_BT, 0.0)


def _numbered(group_B: Tensor) -> tuple[Tensor, int]:
    distinct_G, ids_B = group_B.unique(return_inverse=True)
    return ids_B, len(distinct_G)
