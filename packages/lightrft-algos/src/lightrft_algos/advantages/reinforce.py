"""Plain discounted returns, without a baseline (Williams 1992).

    A_t = sum_{s >= t} gamma^(s - t) r_s,  r_s the token's reward, R added at the last trained token

A KL penalty in the rewards arrives as token rewards. Time is counted in trained tokens.
"""

from lightrft_core.data import Batch, Tensor
from lightrft_core.protocols import Advantages, World
from lightrft_core.sections import Feature, Fraction, Section
from pydantic import Field

from lightrft_algos.whitening import finished, whiten


class ReinforceConfig(Section):
    """Options of `reinforce`."""

    gamma: Fraction = 1.0
    """Discount per token; 1 gives every token the whole return."""
    normalize: bool = False
    """Whiten over all ranks' tokens, as `reinforce_pp` does."""
    clip: float | None = Field(default=None, gt=0)
    """Largest absolute advantage; by default there is no limit."""

    def ignores(self) -> frozenset[Feature]:
        """The scale where it whitens; the shift too, unless it is discounted, which shifts tokens differently."""
        if not self.normalize:
            return frozenset()
        return frozenset({"shift", "scale"}) if self.gamma == 1 else frozenset({"scale"})


def reinforce(batch: Batch, world: World, *, config: ReinforceConfig) -> Advantages:
    """Rows that are not scored give 0."""
    returns_BT = discounted(token_rewards(batch), batch.mask_BT, config.gamma)
    if config.normalize:
        returns_BT = whiten(returns_BT, batch, world)
    return Advantages(finished(returns_BT, batch, config.clip))


def token_rewards(batch: Batch) -> Tensor:
    """Rewards per token, float64 [B, T]: token rewards, with the row's reward at its last trained token."""
    mask_BT = batch.mask_BT
    num_left_BT = mask_BT.flip(-1).cumsum(-1).flip(-1)
    is_last_BT = mask_BT & (num_left_BT == 1)
    rewards_BT = is_last_BT * batch.rewards_B.double().masked_fill(~batch.scored_B, 0.0).unsqueeze(1)
    if batch.token_rewards_BT is not None:
        rewards_BT = rewards_BT + batch.token_rewards_BT.double().masked_fill(~mask_BT, 0.0)
    return rewards_BT.masked_fill(~batch.scored_B.unsqueeze(1), 0.0)


def discounted(rewards_BT: Tensor, mask_BT: Tensor, gamma: float) -> Tensor:
    """Discounted sums from each trained token to the end [B, T]; 0 at other tokens."""
    if gamma == 1.0:
        return rewards_BT.flip(-1).cumsum(-1).flip(-1).masked_fill(~mask_BT, 0.0)
    returns_BT = rewards_BT.new_zeros(rewards_BT.shape)
    running_B = rewards_BT.new_zeros(rewards_BT.shape[0])
    for token in reversed(range(rewards_BT.shape[1])):
        running_B = running_B.where(~mask_BT[:, token], rewards_BT[:, token] + gamma * running_B)
        returns_BT[:, token] = running_B
    return returns_BT.masked_fill(~mask_BT, 0.0)
