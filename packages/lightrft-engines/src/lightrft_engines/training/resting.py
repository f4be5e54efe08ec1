"""Optimizer state that lies elsewhere while the engine generates, and comes back bit for bit.

What a GPU gives away is kept in pinned memory, which is taken once and used again in every step.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from functools import partial

import torch
from torch import Tensor

SMALLEST = 256  # entries: what has no more stays, such as counts and tables of codes
Shelves = Mapping[str, MutableMapping[str, Tensor]]  # tensors by kind, of each parameter by its name
Place = tuple[str, str]


class Resting:
    """The tensors of `shelves`, and `masters` of their own, between their `home` and the device where they rest."""

    def __init__(
        self, shelves: Callable[[], Shelves], masters: Mapping[str, Tensor], home: torch.device, away: torch.device
    ) -> None:
        self._shelves, self._masters, self._home, self._away = shelves, dict(masters), home, away
        self._beds: dict[Place, Tensor] = {}
        self._is_asleep = False

    def sleep(self) -> None:
        """Move everything away; nothing to do for what is away already."""
        if self._is_asleep:
            return
        self._is_asleep = True
        for place, tensor, put in self._places():
            put(self._bed(place, tensor).copy_(tensor))
        self._give_back()

    def wake(self) -> None:
        """Bring everything home."""
        if not self._is_asleep:
            return
        self._is_asleep = False
        for _, tensor, put in self._places():
            put(torch.empty_like(tensor, device=self._home).copy_(tensor))

    def _places(self) -> Iterator[tuple[Place, Tensor, Callable[[Tensor], None]]]:
        for name, shelf in self._shelves().items():
            for kind in [kind for kind, item in shelf.items() if isinstance(item, Tensor) and item.numel() > SMALLEST]:
                yield (kind, name), shelf[kind], partial(shelf.__setitem__, kind)
        for name, master in self._masters.items():
            if master.numel() > SMALLEST:
                yield ("master", name), master.detach(), partial(setattr, master, "data")

    def _bed(self, place: Place, like: Tensor) -> Tensor:
        bed = self._beds.get(place)
        if bed is None or (bed.shape, bed.dtype) != (like.shape, like.dtype):
            pins = self._home.type == "cuda"
            bed = self._beds[place] = torch.empty_like(like, device=self._away, pin_memory=pins, requires_grad=False)
        return bed

    def _give_back(self) -> None:
        """What is free now may be wanted by an engine with an allocator of its own."""
        if self._home.type == "cuda":
            torch.cuda.empty_cache()


def own_masters(names: Sequence[str], masters: Sequence[Tensor], parameters: Sequence[Tensor]) -> dict[str, Tensor]:
    """Masters that are not the model's parameters themselves."""
    triples = zip(names, masters, parameters, strict=True)
    return {name: master for name, master, parameter in triples if not _is_one(master, parameter)}


def _is_one(left: Tensor, right: Tensor) -> bool:
    return bool(left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr())
