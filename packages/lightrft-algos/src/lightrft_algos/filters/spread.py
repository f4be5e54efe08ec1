"""Dynamic sampling (DAPO, arXiv:2503.14476, section 3.2): keep groups whose siblings differ in the task's own metric.

A group of equal rewards has no advantage. The metric is the unshaped one: a length penalty must not make a group that
is all right or all wrong look informative.
"""

from lightrft_core.data import Group
from lightrft_core.sections import Section
from pydantic import Field

from lightrft_algos.metric import metric_values


class SpreadConfig(Section):
    """Options of `spread`."""

    metric: str | None = None
    """Score to look at; by default `accuracy` where a reward gives it, else the reward before shaping."""
    min_spread: float = Field(default=1e-6, gt=0)
    """Keep a group whose highest and lowest value differ at least by this."""


def spread(group: Group, *, config: SpreadConfig) -> bool:
    """Whether the scored siblings differ. Raises `UserError` where no scored sibling has the metric that was named."""
    values = metric_values(group, config.metric, "filters[spread].metric")
    return bool(values) and max(values) - min(values) >= config.min_spread
