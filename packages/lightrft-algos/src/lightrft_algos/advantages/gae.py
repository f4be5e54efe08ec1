"""Generalised advantage estimation (arXiv:1506.02438, equations 11-16), from a critic's values.

    delta_t = r_t + gamma V_{t+1} - V_t,   A_t = sum_{k >= 0} (gamma lambda)^k delta_{t+k},   returns_t = A_t + V_t

R is added at the last trained token, after which V is 0: a completion that was cut off ends there too. Time is counted
in trained tokens. The returns, which the critic learns from, are those of the advantages before any whitening.
"""

from lightrft_core.data import Batch, Tensor
from lightrft_core.protocols import Advantages, World
from lightrft_core.sections import Fraction, Section
from pydantic import Field

from lightrft_algos.advantages.reinforce import token_rewards
from lightrft_algos.whitening import finished, whiten


class GaeConfig(Section):
    """Options of `gae`."""

    gamma: Fraction = 1.0
    """Discount per token."""
    lambd: Fraction = 0.95
    """Trust in the rewards against the critic's values: 1 takes the whole return, 0 looks one token ahead."""
    normalize: bool = False
    """Whiten over all ranks' tokens, as PPO does."""
    clip: float | None = Field(default=None, gt=0)
    """Largest absolute advantage, after whitening; by default there is no limit."""


def gae(batch: Batch, world: World, *, config: GaeConfig) -> Advantages:
    """Reads `values_BT`. Rows that are not scored give 0, and the values themselves as returns.

    Raises `ValueError` for a batch without values.
    """
    if batch.values_BT is None:
        raise ValueError("gae needs the critic's values: the batch has no values_BT")
    kept_BT = batch.mask_BT & batch.scored_B.unsqueeze(1)
    values_BT = batch.values_BT.double().masked_fill(~batch.mask_BT, 0.0)
    advantages_BT = estimate(token_rewards(batch), values_BT, kept_BT, config.gamma, config.lambd)
    returns_BT = (advantages_BT + values_BT).to(batch.rewards_B.dtype)
    if config.normalize:
        advantages_BT = whiten(advantages_BT, batch, world)
    return Advantages(finished(advantages_BT, batch, config.clip), returns_BT)


def estimate(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lambd: float) -> Tensor:
    """The sums at the tokens in the mask, 0 elsewhere; of the values' type, [B, T]."""
    advantages_BT = values_BT.new_zeros(values_BT.shape)
    running_B = values_BT.new_zeros(values_BT.shape[0])
    next_value_B = values_BT.new_zeros(values_BT.shape[0])
    for token in reversed(range(values_BT.shape[1])):
        is_in_B, value_B = mask_BT[:, token], values_BT[:, token]
        delta_B = rewards_BT[:, token] + gamma * next_value_B - value_B
        running_B = (delta_B + gamma * lambd * running_B).where(is_in_B, running_B)
        next_value_B = value_B.where(is_in_B, next_value_B)
        advantages_BT[:, token] = running_B
    return advantages_BT.masked_fill(~mask_BT, 0.0)
