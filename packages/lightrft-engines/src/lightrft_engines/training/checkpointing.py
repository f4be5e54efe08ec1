"""Gradient checkpointing that is on only while a step computes, and never turns dropout on.

Transformers' layers recompute where they are in training mode; only the layers themselves are put there, their parts
stay in evaluation mode. Outside of a step the module is an ordinary one, so that an engine can decode with a cache.
"""

from types import TracebackType

from lightrft_core.errors import UserError
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


class Checkpointing:
    """Context manager around forward and backward passes; does nothing unless `enabled`."""

    def __init__(self, module: nn.Module, enabled: bool) -> None:
        self._layers = [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]
        if enabled and not self._layers:
            raise UserError(
                f"{type(module).__name__} has no layers that can be checkpointed.",
                where="strategy.checkpointing",
                hint="Set it to false.",
            )
        if enabled:
            module.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self._layers = []

    def __enter__(self) -> None:
        for layer in self._layers:
            layer.training = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for layer in self._layers:
            layer.training = False
