"""The weights of a module, counted on the meta device: what each is for, and whether it learns. Tied ones once."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from torch import nn

from lightrft_engines.training.optimizer import SMALLEST

Group = Literal["embeddings", "blocks", "head", "other"]
GROUPS: tuple[Group, ...] = ("embeddings", "blocks", "head", "other")
BITS_4 = 0.516  # bytes of a weight in NF4, with its doubly quantised scale


@dataclass(frozen=True, slots=True)
class Weight:
    """One parameter. `block` numbers the block it belongs to; `is_packed` says that it rests in 4 bits."""

    shape: tuple[int, ...]
    group: Group
    block: int | None
    learns: bool
    is_packed: bool = False

    @property
    def num(self) -> int:
        """Its entries."""
        return prod(self.shape)

    def part(self, ranks: int) -> int:
        """Entries of the largest shard: rows are dealt to the ranks."""
        return -(-self.shape[0] // ranks) * prod(self.shape[1:]) if self.shape else 1

    def resting(self, element: int) -> int:
        """Bytes where an entry takes `element`."""
        return round(self.num * BITS_4) if self.is_packed else self.num * element

    def remembered(self, optimizer: str, element: int) -> float:
        """Bytes for each entry that an optimizer keeps beside a master weight whose entries take `element`."""
        if optimizer == "adamw_8bit" and len(self.shape) > 1 and self.num >= SMALLEST:
            return 2 + 8 / 256
        if optimizer == "muon" and len(self.shape) == 2 and self.block is not None:
            return element
        return 2 * element


@dataclass(frozen=True, slots=True)
class Census:
    """All weights of a module."""

    weights: tuple[Weight, ...]

    @property
    def learning(self) -> tuple[Weight, ...]:
        """Those that take a gradient."""
        return tuple(weight for weight in self.weights if weight.learns)

    @property
    def largest(self) -> int:
        """Entries of the largest weight."""
        return max((weight.num for weight in self.weights), default=0)

    def count(self, group: Group | None = None) -> int:
        """Entries, of one group or all."""
        return sum(weight.num for weight in self.weights if group in (None, weight.group))

    def unit(self, *, learning: bool = False) -> int:
        """Entries of the largest block."""
        blocks: dict[int, int] = {}
        for weight in self.learning if learning else self.weights:
            if weight.block is not None:
                blocks[weight.block] = blocks.get(weight.block, 0) + weight.num
        return max(blocks.values(), default=0)

    def rest(self, *, learning: bool = False) -> int:
        """Entries outside of blocks."""
        return sum(weight.num for weight in (self.learning if learning else self.weights) if weight.block is None)


def census(
    module: nn.Module, blocks: Sequence[nn.Module], *, learns: bool | None = None, in_4_bits: bool = False
) -> Census:
    """Of a module with these blocks. `learns` is so for all weights; None: as they are marked."""
    numbers = {id(weight): number for number, block in enumerate(blocks) for weight in block.parameters()}
    ends = {id(weight): group for group, part in _ends(module) for weight in part.parameters()}
    packed = set(_packed(module)) if in_4_bits else frozenset()
    return Census(
        tuple(
            Weight(
                shape=tuple(weight.shape),
                group=ends.get(id(weight), "other" if id(weight) not in numbers else "blocks"),
                block=numbers.get(id(weight)),
                learns=weight.requires_grad if learns is None else learns,
                is_packed=id(weight) in packed,
            )
            for weight in module.parameters()
        )
    )


def _ends(module: nn.Module) -> Iterator[tuple[Group, nn.Module]]:
    """Later ones win: a tied head is embeddings."""
    getters: tuple[tuple[Group, str], ...] = (("head", "get_output_embeddings"), ("embeddings", "get_input_embeddings"))
    for group, name in getters:
        getter = getattr(module, name, None)
        part = getter() if getter is not None else None
        if part is not None:
            yield group, part


def _packed(module: nn.Module) -> Collection[int]:
    """Linear layers but for the output, where they do not learn: what bitsandbytes packs."""
    head = module.get_output_embeddings()
    linear = (part for part in module.modules() if isinstance(part, nn.Linear) and part is not head)
    return {id(part.weight) for part in linear if not part.weight.requires_grad}
