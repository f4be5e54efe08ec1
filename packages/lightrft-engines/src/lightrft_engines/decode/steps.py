"""How the model runs one decode step: as it is here; `compiled` and `graphs` are other ways."""

from typing import Protocol

from torch import Tensor, nn

from lightrft_engines.attention import AttentionPlan, no_mask
from lightrft_engines.decode.direct import direct_twin


class Step(Protocol):
    """One new token for every row."""

    def __call__(self, tokens_R1: Tensor, positions_R1: Tensor, plan: AttentionPlan) -> Tensor:
        """Logits [R, V] after these tokens at these positions."""


def direct_step(module: nn.Module) -> "PlainStep":
    """A step by the module's twin, for one session."""
    return PlainStep(direct_twin(module))


class PlainStep:
    """The model's own forward pass."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._mask = no_mask(next(module.parameters()).device)

    def __call__(self, tokens_R1: Tensor, positions_R1: Tensor, plan: AttentionPlan) -> Tensor:
        """See `Step`."""
        output = self._module(
            tokens_R1,
            attention_mask=self._mask,
            position_ids=positions_R1,
            use_cache=False,
            logits_to_keep=1,
            lightrft_plan=plan,
        )
        logits: Tensor = output.logits.select(1, 0)
        return logits
