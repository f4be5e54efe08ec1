"""Drop groups in which too many completions were cut off: their rewards tell of the limit, not of the answer."""

from lightrft_core.data import Group
from lightrft_core.sections import Section
from pydantic import Field


class TruncatedConfig(Section):
    """Options of `truncated`."""

    max_fraction: float = Field(default=0.5, ge=0, lt=1)
    """Largest share of completions that a limit or an abort may have cut off."""


def truncated(group: Group, *, config: TruncatedConfig) -> bool:
    """Keep a group with at most this share; the bound itself is kept."""
    num_cut = sum(rollout.finish_reason != "stop" for rollout in group.rollouts)
    return num_cut <= config.max_fraction * len(group.rollouts)
