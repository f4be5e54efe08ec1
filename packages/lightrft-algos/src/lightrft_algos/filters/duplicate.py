"""Drop groups that repeat themselves: copies of one completion compare nothing and count as if they were evidence."""

from lightrft_core.data import Group
from lightrft_core.sections import Section
from pydantic import Field


class DuplicateConfig(Section):
    """Options of `duplicate`."""

    min_distinct: int = Field(default=2, ge=2)
    """Fewest different completions of a group; a smaller group must have all different."""


def duplicate(group: Group, *, config: DuplicateConfig) -> bool:
    """Completions are alike if their texts are, blanks at both ends aside."""
    distinct = {rollout.text.strip() for rollout in group.rollouts}
    return len(distinct) >= min(config.min_distinct, len(group.rollouts))
