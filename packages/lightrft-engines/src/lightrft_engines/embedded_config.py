"""Options of the embedded engine."""

from collections.abc import Mapping
from typing import Literal

from lightrft_core.sections import Idle, Section
from pydantic import Field


class EmbeddedConfig(Section):
    """The engine that generates with the trainer's own module, in the trainer's process."""

    max_batch_size: int = Field(default=256, ge=1)
    """Completions that are written at once; others wait and join when one is done."""
    max_prefill_tokens: int = Field(default=8192, ge=1)
    """Prompt tokens that are read in one forward pass; bounds memory, and a longer prompt goes alone."""
    time_limit: float | None = Field(default=None, gt=0)
    """Seconds that one call may generate; what is not done then comes back as it is, with the finish reason `abort`. By
    default there is no limit."""
    quantization: Literal["int8"] | None = None
    """Generate with linear layers rounded to 8 bits, on CPUs, from a copy that takes a byte per weight; the wider the
    layers, the faster. What is sampled is then not quite the trained policy, so the run needs a `correction`, such as
    `{use: tis}`, and a larger `selftest.tolerance`."""
    compile: bool = False
    """Run decode steps through `torch.compile`, which takes about a minute at first; needs a C++ compiler on CPUs."""
    cuda_graphs: bool = False
    """Record decode steps as CUDA graphs, on GPUs: for small models, which mostly wait for kernels to be launched."""

    def idle(self) -> Mapping[str, Idle]:
        """Compiled steps are not recorded."""
        return {"cuda_graphs": Idle("compile", "engine.compile is on.")} if self.compile else {}
