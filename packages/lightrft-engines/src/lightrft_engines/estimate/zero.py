"""What DeepSpeed's ZeRO holds of a module on a rank. See `holdings`; N ranks, B entries of a bucket."""

from collections.abc import Iterator
from dataclasses import dataclass

from lightrft_core.sections import LearningSection

from lightrft_engines.estimate.census import Census
from lightrft_engines.estimate.courses import Course
from lightrft_engines.estimate.holdings import FULL, Ground
from lightrft_engines.estimate.memory import Memory
from lightrft_engines.training.config import DeepSpeedConfig

BUCKET = 50_000_000  # as `training.zero_engine` tells DeepSpeed
LIVE = 1_000_000_000  # entries of whole weights that stage 3 keeps by default


@dataclass(frozen=True, slots=True)
class Zero:
    """`deepspeed`: fp32 masters and moments are partitioned, from stage 2 gradients, in stage 3 weights."""

    ground: Ground
    config: DeepSpeedConfig

    @property
    def serves_in_place(self) -> bool:
        """Stage 3 has no whole weights."""
        return self.config.stage < 3

    def resting(self, census: Census, section: LearningSection | None, *, asleep: bool = False) -> Memory:
        """c for every weight, or its part; for what learns 12 bytes on one of the ranks."""
        c, is_sharded = self.ground.compute, self.config.stage == 3
        weights = c * self._share(census.count()) if is_sharded else c * census.count()
        if asleep:
            return Memory(host=weights)
        if section is None:
            return self._placed(weights, 0, 0)
        own = self._share(self._num(census))
        return self._placed(weights, self._buffers(census), 3 * FULL * own)

    def learned(self, census: Census) -> int:
        """A part."""
        return self._share(self._num(census))

    def woken(self, census: Census) -> Memory:
        """All of it; in stage 3 what is gathered is all that comes."""
        return Memory() if self.config.stage == 3 else Memory(weights=self.ground.compute * census.count())

    def scoring(self, census: Census, activations: int) -> Iterator[Memory]:
        """The pass, and whole weights where they are partitioned."""
        yield Memory(activations=activations, gathered=self._gathered(census))

    def training(self, census: Census, course: Course, num_passes: int) -> Iterator[Memory]:
        """Stage 1 keeps whole gradients until the last pass, stage 2 this rank's part, both beside a bucket."""
        c, num = self.ground.compute, self._num(census)
        bucket = self._bucket(census)
        for moment in course.moments:
            found = moment.of_others + moment.of_blocks + course.block_gradients * (moment.place == "block")
            if self.config.stage == 1:
                gradients = bucket + (c * num if num_passes > 1 else found)
            elif self.config.stage == 2:
                gradients = bucket + FULL * self._share(num if num_passes > 1 else found // c)
            else:
                gradients = 0
            yield Memory(
                gradients=gradients,
                activations=moment.activations,
                gathered=self._gathered(census),
                host=course.offloaded,
            )
        if self.config.stage == 1:
            yield Memory(gradients=bucket + c * num + FULL * self._share(num))

    def updating(self, census: Census) -> Memory:
        """This rank's part of the gradients, and once more in a row."""
        gradients = 2 * FULL * self._share(self._num(census)) if self.config.stage < 3 else 0
        is_away = self.config.adam_offload or self.config.cpu_offload
        return Memory(host=gradients) if is_away else Memory(gradients=gradients)

    def serving(self, census: Census) -> Memory:
        """The largest weight whole, and a copy of it."""
        return Memory(gathered=2 * self.ground.compute * census.largest)

    def _placed(self, weights: int, gradients: int, state: int) -> Memory:
        is_away = self.config.adam_offload or self.config.cpu_offload
        host = (weights if self.config.cpu_offload else 0) + (state if is_away else 0)
        return Memory(
            weights=0 if self.config.cpu_offload else weights,
            gradients=gradients,
            optimizer=0 if is_away else state,
            host=host,
        )

    def _buffers(self, census: Census) -> int:
        """What lives all the time: fp32 sums in stage 1 with bf16; this rank's part and a bucket in stage 3."""
        num, stage = self._num(census), self.config.stage
        if stage == 3:
            return FULL * (self._share(num) + min(BUCKET, num))
        has_sums = stage == 1 and self.ground.compute < FULL and self.config.grad_accum_dtype == "fp32"
        return FULL * num if has_sums else 0

    def _bucket(self, census: Census) -> int:
        """Gradients on their way to other ranks, in stages 1 and 2."""
        element = self.ground.compute if self.config.stage == 2 else FULL
        return element * min(BUCKET, self._num(census)) * (2 if self.config.overlap_comm else 1)

    def _gathered(self, census: Census) -> int:
        if self.config.stage < 3:
            return 0
        return self.ground.compute * (min(LIVE, census.count()) + min(BUCKET, census.unit()))

    def _share(self, num: int) -> int:
        return -(-num // self.ground.ranks)

    def _num(self, census: Census) -> int:
        return sum(weight.num for weight in census.learning)
