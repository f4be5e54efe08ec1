"""Overlong filtering (DAPO, arXiv:2503.14476, section 3.4): completions that were cut off train nothing.

They stay in their group's baseline. Their reward says that they were too long, not that what they say is wrong.
"""

from lightrft_core.data import Batch, Tensor
from lightrft_core.protocols import World
from lightrft_core.sections import Section


class TruncatedRowsConfig(Section):
    """Options of `truncated`."""


def truncated(batch: Batch, world: World, *, config: TruncatedRowsConfig) -> Tensor:
    """Mask [B, T] of the rows that ended by themselves."""
    if batch.truncated_B is None:
        raise ValueError("truncated needs a model adapter that sets Batch.truncated_B")
    return batch.mask_BT & ~batch.truncated_B.unsqueeze(1)
