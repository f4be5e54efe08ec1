"""What each strategy holds of a module on a rank: at rest, in a pass, in an update. The formulas of docs/estimate.md.

Letters: c bytes of a number that the model computes with, w of one that it rests in; U the largest block, R the weights
outside of blocks, L those that learn.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from lightrft_core.sections import LearningSection

from lightrft_engines.estimate.census import Census
from lightrft_engines.estimate.courses import Course
from lightrft_engines.estimate.memory import Memory

FULL = 4  # bytes of an fp32 number


@dataclass(frozen=True, slots=True)
class Ground:
    """What the formulas stand on. `copies` is how many times the ranks' exchange holds what it moves."""

    ranks: int
    compute: int
    is_gpu: bool

    @property
    def copies(self) -> int:
        """gloo, the CPU's, works on a copy of its own."""
        return 1 if self.is_gpu else 2


class Holdings(Protocol):
    """One strategy's formulas."""

    @property
    def serves_in_place(self) -> bool:
        """Whether an engine may generate with the policy itself."""

    def resting(self, census: Census, section: LearningSection | None, *, asleep: bool = False) -> Memory:
        """Between phases; `section` is the optimizer's, where the module learns."""

    def learned(self, census: Census) -> int:
        """Entries of this rank that learn."""

    def woken(self, census: Census) -> Memory:
        """What comes to the device of a module that rests asleep, while it computes."""

    def scoring(self, census: Census, activations: int) -> Iterator[Memory]:
        """Moments of a pass without gradient, beside what rests."""

    def training(self, census: Census, course: Course, num_passes: int) -> Iterator[Memory]:
        """Moments of the passes with gradient."""

    def updating(self, census: Census) -> Memory:
        """The update, with gradients whole and no pass under way."""

    def serving(self, census: Census) -> Memory:
        """Handing whole weights to an engine, one at a time."""


@dataclass(frozen=True, slots=True)
class Whole:
    """`single` and, with `overlaps`, `ddp`."""

    ground: Ground
    overlaps: bool
    adam_offload: bool

    serves_in_place = True

    def resting(self, census: Census, section: LearningSection | None, *, asleep: bool = False) -> Memory:
        """c for every weight; fp32 masters beside those that learn in less."""
        c = self.ground.compute
        weights = sum(weight.resting(c) for weight in census.weights)
        if asleep:
            return Memory(host=weights)
        if section is None:
            return Memory(weights=weights)
        masters = FULL * self.learned(census) if c < FULL or self.adam_offload else 0
        state = masters + _remembered(census, section, FULL)
        buckets = c * self.learned(census) if self.overlaps else 0
        if self.adam_offload:
            return Memory(weights=weights, gradients=buckets, host=state)
        return Memory(weights=weights, gradients=buckets, optimizer=state)

    def learned(self, census: Census) -> int:
        """All."""
        return sum(weight.num for weight in census.learning)

    def woken(self, census: Census) -> Memory:
        """All of it."""
        return Memory(weights=sum(weight.resting(self.ground.compute) for weight in census.weights))

    def scoring(self, census: Census, activations: int) -> Iterator[Memory]:
        """The pass alone."""
        yield Memory(activations=activations, gathered=_unpacked(census, self.ground.compute))

    def training(self, census: Census, course: Course, num_passes: int) -> Iterator[Memory]:
        """One fp32 buffer for all gradients; in bf16 a pass holds its own as well until it is over.

        DDP's buckets rest; all but the last of several passes add up beside them.
        """
        c, num = self.ground.compute, self.learned(census)
        buffer = FULL * num if not self.overlaps else c * num if num_passes > 1 else 0
        own = c < FULL and not self.overlaps
        for moment in course.moments:
            found = moment.of_others + moment.of_blocks + course.block_gradients * (moment.place == "block")
            gathered = _unpacked(census, c)
            gradients = buffer + (found if own else 0)
            yield Memory(gradients=gradients, activations=moment.activations, gathered=gathered, host=course.offloaded)

    def updating(self, census: Census) -> Memory:
        """fp32 gradients; beside DDP's buckets only where these are bf16."""
        is_copied = not self.overlaps or self.ground.compute < FULL
        gradients = FULL * self.learned(census) if is_copied else 0
        return Memory(gradients=gradients, host=gradients if self.adam_offload else 0)

    def serving(self, census: Census) -> Memory:
        """In place; with adapters one merged weight at a time."""
        return Memory(gathered=self.ground.compute * census.largest)


@dataclass(frozen=True, slots=True)
class Sharded:
    """`fsdp2`: blocks are gathered before they compute, everything outside of blocks stays gathered meanwhile."""

    ground: Ground
    shards: int
    master_weights: bool
    reshard_after_forward: bool
    cpu_offload: bool
    adam_offload: bool

    serves_in_place = False

    @property
    def _stored(self) -> int:
        """Bytes of a number that learns."""
        return FULL if self.master_weights else self.ground.compute

    def resting(self, census: Census, section: LearningSection | None, *, asleep: bool = False) -> Memory:
        """A shard of everything: rows of each weight, rounded up."""
        w, c = self._stored, self.ground.compute
        weights = sum((w if weight.learns else c) * weight.part(self.shards) for weight in census.weights)
        state = 0 if section is None else _remembered(census, section, w, self.shards)
        if asleep or self.cpu_offload:
            return Memory(host=weights + state)
        if self.adam_offload and section is not None:
            return Memory(weights=weights, host=state + w * self.learned(census))
        return Memory(weights=weights, optimizer=state)

    def learned(self, census: Census) -> int:
        """Shards."""
        return sum(weight.part(self.shards) for weight in census.learning)

    def woken(self, census: Census) -> Memory:
        """Its shards stay where they are: what is gathered is all that comes."""
        return Memory()

    def scoring(self, census: Census, activations: int) -> Iterator[Memory]:
        """Two buffers for a moment when a block joins: its own, and that of what was gathered before it."""
        whole, block = self._gathered(census)
        yield Memory(gathered=2 * whole + block)
        yield Memory(gathered=whole + 2 * block, activations=activations)

    def training(self, census: Census, course: Course, num_passes: int) -> Iterator[Memory]:
        """Gradients of a block are reduced when it is done, those of the rest at the end."""
        c, w = self.ground.compute, self._stored
        whole, block = self._gathered(census)
        if not self.reshard_after_forward:
            block = c * (census.count() - census.rest())
        unit, rest = census.unit(learning=True), census.rest(learning=True)
        shards = w * self.learned(census)
        summed = shards if num_passes > 1 else 0
        host = course.offloaded
        yield Memory(gradients=summed, gathered=2 * whole, activations=course.saved, host=host)
        for moment in course.moments:
            is_block = moment.place == "block"
            so_far = summed or round(moment.of_blocks / c * w / self.shards)
            found = moment.of_others + (course.block_gradients if is_block else 0)
            waiting = 0 if moment.place == "head" else FULL * unit * self.ground.copies
            yield Memory(
                gradients=so_far + found + waiting,
                gathered=whole + (2 * block if is_block else block),
                activations=moment.activations,
                host=host,
            )
        yield Memory(gradients=shards + c * rest + FULL * rest * self.ground.copies)

    def updating(self, census: Census) -> Memory:
        """Shards of gradients."""
        gradients = self._stored * self.learned(census)
        return Memory(host=gradients) if self.cpu_offload else Memory(gradients=gradients)

    def serving(self, census: Census) -> Memory:
        """The largest weight whole, in what it rests in and in what it is served in."""
        c, w = self.ground.compute, self._stored
        return Memory(gathered=census.largest * (w * self.ground.copies + (c if c < w else 0)))

    def _gathered(self, census: Census) -> tuple[int, int]:
        """Whole weights of what is outside of blocks, and of the largest block."""
        return self.ground.compute * census.rest(), self.ground.compute * census.unit()


def _remembered(census: Census, section: LearningSection, element: int, ranks: int = 1) -> int:
    parts = (weight.part(ranks) * weight.remembered(section.optimizer, element) for weight in census.learning)
    return round(sum(parts))


def _unpacked(census: Census, element: int) -> int:
    """The largest 4-bit weight, as it computes."""
    return element * max((weight.num for weight in census.weights if weight.is_packed), default=0)
