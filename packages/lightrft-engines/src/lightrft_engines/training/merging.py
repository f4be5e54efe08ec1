"""From the parameters of a module with LoRA layers to those of the plain model that it stands for, by plain names.

    W' = W + (alpha / rank) B A

It is done here alone, from whole tensors, however these lie over the ranks; W is unpacked where it is kept in 4 bits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from lightrft_engines.lora import ADAPTER, adapted_layers

BASE = ".base_layer."


@dataclass(frozen=True, slots=True)
class Bypass:
    """What lies beside a weight: names of A and B, and how far they count."""

    down: str
    up: str
    scaling: float
    is_transposed: bool


class Merging:
    """Of one module; parameters are named as in the module, results as in the plain model."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._bypasses = module, dict(_bypasses(module))
        adapters = {name for item in self._bypasses.values() for name in (item.down, item.up)}
        self._own_names = {
            name.replace(BASE, "."): name for name, _ in module.named_parameters() if name not in adapters
        }
        self._layers = [layer for _, layer in adapted_layers(module)]

    def names(self) -> list[str]:
        """Plain names, in the plain model's order."""
        return list(self._own_names)

    def merged(self, name: str, whole: Callable[[str], Tensor]) -> Tensor:
        """A parameter of the plain model; `whole` gives one of the module's, and all ranks call it together."""
        own_name = self._own_names[name]
        base = _unpacked(self._module, own_name, whole(own_name))
        bypass = self._bypasses.get(name)
        if bypass is None:
            return base
        accurate = torch.promote_types(base.dtype, torch.float32)
        change = whole(bypass.up).to(accurate) @ whole(bypass.down).to(accurate) * bypass.scaling
        return base.to(accurate) + (change.T if bypass.is_transposed else change)

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """The module is the base model inside of it.

        PEFT's own switch would also take the adapters' `requires_grad`, which sharding looks at only once.
        """
        for layer in self._layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer in self._layers:
                layer._disable_adapters = False


class Dropping:
    """Context manager around passes with gradient in which adapters drop some of their inputs."""

    def __init__(self, module: nn.Module) -> None:
        drops = [layer.lora_dropout[ADAPTER] for _, layer in adapted_layers(module)]
        self._drops = [drop for drop in drops if isinstance(drop, nn.Dropout)]

    def __enter__(self) -> None:
        for drop in self._drops:
            drop.training = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for drop in self._drops:
            drop.training = False


def _bypasses(module: nn.Module) -> Iterator[tuple[str, Bypass]]:
    for name, layer in adapted_layers(module):
        down, up = f"{name}.lora_A.{ADAPTER}.weight", f"{name}.lora_B.{ADAPTER}.weight"
        yield f"{name}.weight", Bypass(down, up, layer.scaling[ADAPTER], layer.fan_in_fan_out)


def _unpacked(module: nn.Module, name: str, weight: Tensor) -> Tensor:
    state: Any = getattr(module.get_parameter(name), "quant_state", None)  # Any: bitsandbytes' own
    if state is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit

    unpacked: Tensor = dequantize_4bit(weight, state)
    return unpacked
