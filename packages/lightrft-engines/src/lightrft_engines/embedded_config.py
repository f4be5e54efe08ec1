"""Options of the embedded engine."""

from lightrft_core.sections import Section
from pydantic import Field


class EmbeddedConfig(Section):
    """The engine that generates with the trainer's own module, in the trainer's process."""

    max_batch_size: int = Field(default=256, ge=1)
    """Completions that are written at once; others wait and join when one is done."""
    max_prefill_tokens: int = Field(default=8192, ge=1)
    """Prompt tokens that are read in one forward pass; bounds memory, and a longer prompt goes alone."""
