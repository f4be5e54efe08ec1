"""Dynamic sampling (DAPO, arXiv:2503.14476, section 3.2): keep groups whose siblings differ in the task's own metric.

A group of equal rewards has no advantage. The metric is the unshaped one: a length penalty must not make a group that
is all right or all wrong look informative.
"""

from lightrft_core.data import Group
from lightrft_core.errors import UserError
from lightrft_core.sections import Section
from pydantic import Field

DEFAULT_METRIC = "accuracy"


class SpreadConfig(Section):
    """Options of `spread`."""

    metric: str | None = None
    """Score to look at; by default `accuracy` where a reward gives it, else the reward before shaping."""
    min_spread: float = Field(default=1e-6, gt=0)
    """Keep a group whose highest and lowest value differ at least by this."""


def spread(group: Group, *, config: SpreadConfig) -> bool:
    """Whether the scored siblings differ. Raises `UserError` where no scored sibling has the metric that was named."""
    values = _values(group, config.metric)
    return bool(values) and max(values) - min(values) >= config.min_spread


def _values(group: Group, metric: str | None) -> list[float]:
    rewards = group.rewards()
    if metric is None:
        return group.rewards(DEFAULT_METRIC) or rewards
    values = group.rewards(metric)
    if rewards and not values:
        names = sorted({name for rollout in group.rollouts for name in rollout.scores})
        raise UserError(
            f"no reward gives a score named {metric!r}",
            where="filters[spread].metric",
            hint=f"Scores of this run: {', '.join(names) or 'none'}. Leave the metric out to take the reward.",
        )
    return values
