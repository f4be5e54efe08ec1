"""Online filtering by difficulty (PRIME, arXiv:2502.01456, section 4.2): keep prompts that are neither solved nor lost.

The metric is the task's own, before any shaping.
"""

from typing import Self

from lightrft_core.data import Group
from lightrft_core.sections import Section
from pydantic import model_validator

from lightrft_algos.metric import metric_values


class ThresholdConfig(Section):
    """Options of `threshold`."""

    metric: str | None = None
    """Score to look at; by default `accuracy` where a reward gives it, else the reward before shaping."""
    low: float = 0.2
    """Keep a group whose mean is at least this ..."""
    high: float = 0.8
    """... and at most this."""

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) is above high ({self.high:g}): no group would be kept")
        return self


def threshold(group: Group, *, config: ThresholdConfig) -> bool:
    """A group without any score is dropped. Raises `UserError` where no scored sibling has the metric named."""
    values = metric_values(group, config.metric, "filters[threshold].metric")
    return bool(values) and config.low <= sum(values) / len(values) <= config.high
