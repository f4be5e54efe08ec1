"""The batch rule: how a rollout is cut into optimizer steps, checked before any model is loaded.

Samples per rollout = `sampler.prompts_per_step` x `sampler.group_size`. An optimizer step takes `optim.batch_size` of
them over all ranks: a smaller one gives several steps per rollout (the later ones off-policy, which is what clipping is
for).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

from lightrft_core.errors import Problems, UserError
from lightrft_core.runfile import RunFile
from lightrft_core.sections import SamplerSection


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Whole numbers that fit each other. A minibatch is what one optimizer step takes."""

    prompts_per_step: int
    group_size: int
    minibatch_size: int
    epochs: int
    world_size: int

    @property
    def samples_per_step(self) -> int:
        """Samples of one rollout, over all ranks."""
        return self.prompts_per_step * self.group_size

    @property
    def num_minibatches(self) -> int:
        """Optimizer steps of one pass over a rollout."""
        return self.samples_per_step // self.minibatch_size

    @property
    def optimizer_steps_per_rollout(self) -> int:
        """Optimizer steps of all passes over a rollout."""
        return self.num_minibatches * self.epochs

    def describe(self) -> str:
        """One line for people."""
        num = self.optimizer_steps_per_rollout
        passes = f" x {self.epochs} epochs" if self.epochs > 1 else ""
        later = "" if num == 1 else f" (update{'s' if num > 2 else ''} {f'2-{num}' if num > 2 else '2'} off-policy)"
        ranks = f" on {self.world_size} ranks" if self.world_size > 1 else ""
        rollout = f"{self.prompts_per_step} prompts x {self.group_size} = {self.samples_per_step} samples"
        updates = f"{num} update{'s' if num != 1 else ''} per rollout{later}"
        return f"{rollout} / {self.minibatch_size} per update{passes} = {updates}{ranks}"


def check_batch(run_file: RunFile, world_size: int) -> BatchPlan:
    """The plan of a run on so many ranks. Raises `Problems` with every violation, its arithmetic and what would fit."""
    sampler = cast(SamplerSection, run_file.sampler.config)
    sizes = _Sizes(
        prompts=sampler.prompts_per_step,
        group=sampler.group_size,
        batch=run_file.optim.batch_size,
        ranks=world_size,
        micro=_micro_batch_size(run_file),
    )
    found = [
        UserError(what, where=_where(run_file.origins.get(key, ""), key), hint=hint)
        for key, what, hint in (*_prompt_problems(sizes), *_batch_problems(sizes), *_micro_problems(sizes))
    ]
    if found:
        raise Problems(found)
    return BatchPlan(sizes.prompts, sizes.group, sizes.batch or sizes.samples, run_file.optim.epochs, world_size)


@dataclass(frozen=True, slots=True)
class _Sizes:
    prompts: int
    group: int
    batch: int | None
    ranks: int
    micro: int | None

    @property
    def samples(self) -> int:
        return self.prompts * self.group

    @property
    def unit(self) -> int:
        """What a batch must be a multiple of."""
        return self.ranks * (self.micro or 1)

    @property
    def product(self) -> str:
        return f"{self.prompts} prompts x {self.group} completions = {self.samples} samples"

    @property
    def shares(self) -> str:
        ranks = f"{self.ranks} rank{'s' if self.ranks > 1 else ''}"
        return f"{ranks} x micro-batch {self.micro} = {self.unit}" if self.micro else ranks

    @property
    def fitting(self) -> list[int]:
        """Batch sizes that divide the samples and are multiples of the unit."""
        return [size for size in range(self.unit, self.samples + 1, self.unit) if self.samples % size == 0]


_Problem = tuple[str, str, str]  # key, what, hint


def _prompt_problems(sizes: _Sizes) -> Iterator[_Problem]:
    left = sizes.prompts % sizes.ranks
    if left:
        near = _nearest(sizes.prompts, lambda value: value % sizes.ranks == 0)
        what = f"{sizes.prompts} prompts cannot be shared evenly by {sizes.ranks} ranks: {left} would be left over."
        yield "sampler.prompts_per_step", what, f"Nearest: {near}."


def _batch_problems(sizes: _Sizes) -> Iterator[_Problem]:
    key, batch, fits = "optim.batch_size", sizes.batch, sizes.fitting
    if batch is None:
        return
    if batch > sizes.samples:
        what = f"{batch} is larger than what a rollout yields: {sizes.product}."
        best = f"Set it to {max(fits)} or leave it out" if fits else "Leave it out"
        yield key, what, f"{best}, or raise sampler.prompts_per_step to {-(-batch // sizes.group)}."
    elif sizes.samples % batch:
        left = sizes.samples % batch
        what = (
            f"{batch} does not divide a rollout evenly: {sizes.product}, and {sizes.samples} / {batch} leaves {left}."
        )
        yield key, what, _nearest_fits(batch, fits)
    if batch % sizes.unit:
        what = f"{batch} is not divisible by {sizes.shares}: {batch} / {sizes.unit} leaves {batch % sizes.unit}."
        share = batch // sizes.ranks
        hint = _nearest_fits(batch, fits)
        if sizes.micro and batch % sizes.ranks == 0:
            micro = _nearest(sizes.micro, lambda value: share % value == 0, upper=share)
            hint += f" Or set strategy.micro_batch_size to {micro}."
        yield key, what, hint


def _micro_problems(sizes: _Sizes) -> Iterator[_Problem]:
    if sizes.batch is None and sizes.micro and sizes.samples % sizes.unit and sizes.samples % sizes.ranks == 0:
        share = sizes.samples // sizes.ranks
        near = _nearest(sizes.micro, lambda value: share % value == 0, upper=share)
        what = f"a rollout's {sizes.product} are not divisible by {sizes.shares}."
        yield "strategy.micro_batch_size", what, f"Nearest: {near}."


def _where(origin: str, key: str) -> str:
    is_flag = origin.startswith("--") and origin != "--set"
    return f"{origin} ({key})" if is_flag else f"{origin} {key}".strip()


def _micro_batch_size(run_file: RunFile) -> int | None:
    """The strategy's rows per pass, where the user set it and the strategy counts in rows."""
    value = run_file.strategy.config.__dict__.get("micro_batch_size")
    return value if isinstance(value, int) and "micro_batch_size" in run_file.strategy.config.model_fields_set else None


def _nearest_fits(size: int, fits: list[int]) -> str:
    if not fits:
        return "No size fits; change sampler.prompts_per_step or strategy.micro_batch_size."
    below = max((value for value in fits if value < size), default=None)
    above = min((value for value in fits if value > size), default=None)
    return f"Nearest: {' or '.join(str(value) for value in (below, above) if value is not None)}."


def _nearest(value: int, fits: Callable[[int], bool], upper: int | None = None) -> str:
    """The next fitting numbers below and above."""
    top = upper if upper is not None else value * 2 + 64
    below = next((number for number in range(min(value, top), 0, -1) if fits(number)), None)
    above = next((number for number in range(value + 1, top + 1) if fits(number)), None)
    return " or ".join(str(number) for number in (below, above) if number is not None)
