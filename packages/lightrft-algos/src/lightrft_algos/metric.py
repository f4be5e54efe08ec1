"""The value that a filter or shaper looks at: a named score, or the task's own metric, before any shaping."""

from lightrft_core.data import Group
from lightrft_core.errors import UserError

DEFAULT_METRIC = "accuracy"


def metric_values(group: Group, metric: str | None, where: str) -> list[float]:
    """The scored siblings' score called `metric`; by default `accuracy` where a reward gives it, else the reward.

    Raises `UserError` at `where` if no scored sibling has the metric that was named.
    """
    rewards = group.rewards()
    if metric is None:
        return group.rewards(DEFAULT_METRIC) or rewards
    values = group.rewards(metric)
    if rewards and not values:
        names = sorted({name for rollout in group.rollouts for name in rollout.scores})
        raise UserError(
            f"no reward gives a score named {metric!r}",
            where=where,
            hint=f"Scores of this run: {', '.join(names) or 'none'}. Leave the metric out to take the reward.",
        )
    return values
