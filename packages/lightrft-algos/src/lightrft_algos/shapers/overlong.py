"""The soft overlong penalty (DAPO, arXiv:2503.14476, equation 13): the last stretch before the limit costs reward.

penalty = min(0, (max - buffer - length) / buffer) * factor,  max the sampler's max_new_tokens
"""

from collections.abc import Mapping, Sequence

from lightrft_core.data import Group
from lightrft_core.errors import UserError
from lightrft_core.protocols import Setup, World
from lightrft_core.sections import Section
from pydantic import Field

DEFAULT_SHARE = 5  # the paper's buffer: 4,096 of 20,480 tokens


class OverlongConfig(Section):
    """Options of `overlong`."""

    buffer: int | None = Field(default=None, ge=1)
    """Tokens before the limit in which the penalty grows; by default a fifth of `sampler.max_new_tokens`."""
    factor: float = Field(default=1.0, gt=0)
    """Penalty of a completion that reaches the limit."""


class OverlongShaper:
    """Subtracts the penalty. Raises `UserError` where the buffer is longer than a completion may be."""

    def __init__(self, config: OverlongConfig, setup: Setup) -> None:
        limit = setup.sampler.max_new_tokens
        self._buffer = max(limit // DEFAULT_SHARE, 1) if config.buffer is None else config.buffer
        if self._buffer > limit:
            raise UserError(
                f"buffer is {self._buffer}, longer than the longest completion of {limit} tokens",
                where="shapers[overlong].buffer",
                hint=f"Set it to {limit} or less, or raise sampler.max_new_tokens.",
            )
        self._free_length, self._factor = limit - self._buffer, config.factor

    def apply(self, groups: Sequence[Group], world: World) -> Mapping[str, float]:
        """Metrics: mean penalty and share of penalised completions, over the scored rollouts of all ranks."""
        penalties = []
        for rollout in (rollout for group in groups for rollout in group.rollouts):
            if rollout.reward is None:
                continue
            present = rollout.reward if rollout.shaped_reward is None else rollout.shaped_reward
            penalties.append(self.penalty(len(rollout.token_ids)))
            rollout.shaped_reward = present + penalties[-1]
        total, hit, count = world.sum([sum(penalties), sum(item < 0 for item in penalties), len(penalties)])
        return {"overlong/penalty": total / max(count, 1.0), "overlong/fraction": hit / max(count, 1.0)}

    def penalty(self, length: int) -> float:
        """What a completion of so many tokens costs, 0 or less."""
        return min(0.0, (self._free_length - length) / self._buffer) * self._factor
