"""Gradient checkpointing that is on only while a step computes, and never turns dropout on.

Transformers' layers recompute where they are in training mode; only the layers themselves are put there, their parts
stay in evaluation mode. Outside of a step the module is an ordinary one, so that an engine can decode with a cache.

A re-entrant checkpoint is one node of the graph, with a backward pass of its own inside: it hands on gradients only
where its input takes some, and frozen embeddings give states that take none. So in a step they are made to.
"""

from types import TracebackType

from lightrft_core.errors import UserError
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


class Checkpointing:
    """Context manager around forward and backward passes; does nothing unless `enabled`."""

    def __init__(self, module: nn.Module, enabled: bool, *, reentrant: bool = False) -> None:
        self._layers = [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]
        if enabled and not self._layers:
            raise UserError(
                f"{type(module).__name__} has no layers that can be checkpointed.",
                where="strategy.checkpointing",
                hint="Set it to false.",
            )
        self._models: list[PreTrainedModel] = []
        if enabled:
            model = next(part for part in module.modules() if isinstance(part, PreTrainedModel))
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.disable_input_require_grads()  # what the line above switched on would stay on outside of steps
            self._models = [model] if reentrant else []
        else:
            self._layers = []

    def __enter__(self) -> None:
        for layer in self._layers:
            layer.training = True
        for model in self._models:
            model.enable_input_require_grads()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for layer in self._layers:
            layer.training = False
        for model in self._models:
            model.disable_input_require_grads()
