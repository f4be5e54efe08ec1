"""Runs a model without memory and counts what it would take.

Weights become fake tensors, which know shape and type alone. A dispatch mode sees every operation, backward passes
included, and adds up the storages that are alive: each once, however many views it has, until nothing holds it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

DEVICE = torch.device("cpu")  # of fake tensors: they go the ways that a CPU's do


def _every_place(chosen: Tensor) -> Tensor:
    """What `nonzero` gives at most: how many places there are depends on numbers, and fake tensors have none."""
    return torch.empty(chosen.numel(), chosen.ndim, dtype=torch.long)


def _grouped_product(left: Tensor, right: Tensor, *others: Any, **named: Any) -> Tensor:  # Any: torch's own arguments
    """The product of experts in any numbers: for fake tensors torch knows its shape in bf16 alone."""
    found: Tensor = GROUPED_PRODUCT(left.bfloat16(), right.bfloat16(), *others, **named)
    return found.to(left.dtype)


GROUPED_PRODUCT = torch.ops.aten._grouped_mm.default
STAND_INS: dict[Any, Callable[..., Any]] = {  # Any: torch's operators
    torch.ops.aten.nonzero.default: _every_place,
    GROUPED_PRODUCT: _grouped_product,
}


class Meter(TorchDispatchMode):  # type: ignore[misc]  # mypy does not follow torch
    """`alive` bytes at this moment, and the `most` since `restart`."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self._sizes: dict[int, int] = {}

    def restart(self) -> None:
        """From here on `most` is new."""
        self.most = self.alive

    def leave_out(self, tensors: Iterator[Tensor]) -> None:
        """These are counted elsewhere."""
        for tensor in tensors:
            self._sizes[_key(tensor)] = 0

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],  # Any: here and below, torch's own protocol
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        stand_in = STAND_INS.get(function, function)
        result = stand_in(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._see(value)
        self.most = max(self.most, self.alive)
        return result

    def _see(self, tensor: Tensor) -> None:
        key = _key(tensor)
        if key not in self._sizes:
            storage = tensor.untyped_storage()
            self._sizes[key] = storage.nbytes()
            self.alive += self._sizes[key]
            finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.alive -= self._sizes.pop(key)


class Weightless:
    """A module with fake weights of one type in the place of meta ones, tied as they were. Changes the module."""

    def __init__(self, skeleton: nn.Module, dtype: torch.dtype) -> None:
        _start_autograd()
        self.module, self._mode = skeleton.eval(), FakeTensorMode()
        made: dict[int, Tensor] = {}
        with self._mode:
            for part in skeleton.modules():
                for name, weight in part._parameters.items():
                    if weight is not None:
                        part._parameters[name] = made.setdefault(id(weight), _fake_weight(weight, dtype))
                for name, buffer in part._buffers.items():
                    if buffer is not None:
                        part._buffers[name] = made.setdefault(id(buffer), _empty(buffer, buffer.dtype))

    @contextmanager
    def metered(self) -> Iterator[Meter]:
        """What is computed inside takes no memory, and the meter sees it; the module's own tensors count nothing."""
        meter = Meter()
        meter.leave_out(iter((*self.module.parameters(), *self.module.buffers())))
        with self._mode, meter:
            yield meter

    def fake(self, real: Tensor) -> Tensor:
        """A tensor's shape and type, for inside."""
        fake: Tensor = self._mode.from_tensor(real)
        return fake


def _fake_weight(weight: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    kind = dtype if weight.is_floating_point() else weight.dtype
    return nn.Parameter(_empty(weight, kind), requires_grad=weight.requires_grad)


def _empty(like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(like.shape, dtype=dtype, device=DEVICE)


def _key(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key


def _start_autograd() -> None:
    """The first backward pass of a process settles for which devices autograd has threads. Fake tensors pretend to some
    that are not there, and a process with such threads may not fork ranks any more."""
    with torch.enable_grad():
        torch.zeros(1, requires_grad=True).sum().backward()
