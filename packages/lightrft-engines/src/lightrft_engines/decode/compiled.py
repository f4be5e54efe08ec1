"""A decode step through `torch.compile`: all between two attentions becomes fused kernels.

Attention stays ours, as one opaque operator: it reads and writes the cache of the step's plan, whose sizes change at
every step. Shapes are dynamic, so that rows may come and go.
"""

from contextvars import ContextVar
from functools import lru_cache

import torch
from lightrft_core.errors import EnvironmentUnfit
from torch import Tensor, nn
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from lightrft_engines.attention import AttentionPlan
from lightrft_engines.decode.steps import PlainStep

OPERATOR = "lightrft::attend_step"
_running: ContextVar[AttentionPlan] = ContextVar("plan of the step that runs")


class CompiledStep:
    """The same through `torch.compile`, at its first call; a single row is a shape of its own."""

    def __init__(self, module: nn.Module) -> None:
        if next(module.parameters()).device.type == "cpu":
            _require_compiler()
        self._opaque = _Opaque()
        self._run = torch.compile(PlainStep(module), dynamic=True, fullgraph=True)

    def __call__(self, tokens_R1: Tensor, positions_R1: Tensor, plan: AttentionPlan) -> Tensor:
        """See `Step`."""
        token = _running.set(plan)
        try:
            logits: Tensor = self._run(tokens_R1, positions_R1, self._opaque)
        finally:
            _running.reset(token)
        return logits


def _require_compiler() -> None:
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise EnvironmentUnfit(
            "torch.compile needs a C++ compiler on CPUs, and finds none.",
            where="engine.compile",
            hint="Install g++, name another in the environment variable CXX, or leave the option out.",
        ) from error


class _Opaque:
    """A plan that the compiler does not look into."""

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        output: Tensor = torch.ops.lightrft.attend_step(query, key, value, scale, module.layer_idx)
        return output


class _Layer(nn.Module):  # type: ignore[misc]  # mypy does not follow torch
    """All that a plan asks of a layer."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx


_layer = lru_cache(_Layer)


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, layer: int) -> Tensor:
    return _running.get().attend(_layer(layer), query, key, value, scaling)


def _result(query: Tensor, key: Tensor, value: Tensor, scaling: float, layer: int) -> Tensor:
    return query.new_empty(query.shape[0], 1, query.shape[1], value.shape[-1])


torch.library.define(OPERATOR, "(Tensor query, Tensor key, Tensor value, float scaling, int layer) -> Tensor")
torch.library.impl(OPERATOR, "default", _attend)
torch.library.register_fake(OPERATOR, _result)
