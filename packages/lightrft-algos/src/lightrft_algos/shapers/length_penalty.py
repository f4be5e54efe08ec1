"""Shorter answers are worth more, by Kimi k1.5's length reward (arXiv:2501.12599, section 2.3.3), or in proportion.

group:   lambda = 0.5 - (length - min_g) / (max_g - min_g);  R += factor (lambda if right else min(0, lambda))
linear:  R -= factor length / max_new_tokens
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from lightrft_core.data import Group, Rollout
from lightrft_core.protocols import Setup, World
from lightrft_core.sections import Idle, Section
from pydantic import Field

from lightrft_algos.metric import DEFAULT_METRIC


class LengthPenaltyConfig(Section):
    """Options of `length_penalty`."""

    shape: Literal["group", "linear"] = "group"
    """Compare with the siblings' lengths, or charge every token alike."""
    factor: float = Field(default=0.1, gt=0)
    """Height: it lies between the shortest and the longest sibling, or is what an answer of full length costs."""
    right_from: float = 0.5
    """`group`: an answer is right from this value on of `accuracy`, or of the reward where no reward gives that."""

    def idle(self) -> Mapping[str, Idle]:
        """`right_from` belongs to `group`."""
        return {} if self.shape == "group" else {"right_from": Idle("shape", "shape is linear.")}


class LengthPenalty:
    """Adds it to every scored rollout. Siblings of one length get 0 by `group`; wrong ones are never rewarded."""

    def __init__(self, config: LengthPenaltyConfig, setup: Setup) -> None:
        self._config, self._limit = config, setup.sampler.max_new_tokens

    def apply(self, groups: Sequence[Group], world: World) -> Mapping[str, float]:
        """Metric: the mean change, over the scored rollouts of all ranks."""
        changes: list[float] = []
        for group in groups:
            scored = [rollout for rollout in group.rollouts if rollout.reward is not None]
            lengths = [len(rollout.token_ids) for rollout in scored]
            for rollout, length in zip(scored, lengths, strict=True):
                change = self._change(rollout, length, min(lengths), max(lengths))
                before = rollout.reward if rollout.shaped_reward is None else rollout.shaped_reward
                rollout.shaped_reward = (before or 0.0) + change
                changes.append(change)
        total, count = world.sum([sum(changes), len(changes)])
        return {"reward/length_penalty": total / max(count, 1.0)}

    def _change(self, rollout: Rollout, length: int, shortest: int, longest: int) -> float:
        config = self._config
        if config.shape == "linear":
            return -config.factor * length / self._limit
        if shortest == longest:
            return 0.0
        value = 0.5 - (length - shortest) / (longest - shortest)
        is_right = rollout.scores.get(DEFAULT_METRIC, rollout.reward or 0.0) >= config.right_from
        return config.factor * (value if is_right else min(0.0, value))
