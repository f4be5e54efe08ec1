"""Bytes of one rank, by what they are for."""

from collections.abc import Iterable
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Memory:
    """What one rank holds at one moment. `host` is CPU memory beside a GPU's, and no part of the total."""

    weights: int = 0
    """Of all roles, as they rest on this rank."""
    gradients: int = 0
    optimizer: int = 0
    """Master weights where these are not the weights themselves, and what the optimizer remembers."""
    activations: int = 0
    """What passes keep and compute; in decoding logits too."""
    gathered: int = 0
    """Whole weights of the blocks that compute, where weights are sharded, and buffers of the exchange."""
    cache: int = 0
    """Keys and values of what the engine reads and writes."""
    engine: int = 0
    """The engine's own copy of the weights."""
    overhead: int = 0
    """Libraries, and a GPU's context."""
    host: int = 0

    @property
    def total(self) -> int:
        """All but `host`."""
        sizes: list[int] = [getattr(self, item.name) for item in fields(self)]
        return sum(sizes) - self.host

    def __add__(self, other: "Memory") -> "Memory":
        names = [item.name for item in fields(self)]
        return Memory(**{name: getattr(self, name) + getattr(other, name) for name in names})


def worst(moments: Iterable[Memory]) -> Memory:
    """The moment with the largest total; nothing where there is none."""
    return max(moments, key=lambda moment: moment.total, default=Memory())
