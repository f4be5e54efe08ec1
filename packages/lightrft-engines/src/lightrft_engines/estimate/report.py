"""An estimate for people, and as data."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from rich.console import Console
from rich.table import Table

from lightrft_engines.estimate.advice import Advice, Option
from lightrft_engines.estimate.census import GROUPS
from lightrft_engines.estimate.memory import Memory
from lightrft_engines.estimate.phases import Estimate
from lightrft_engines.estimate.target import SPARE

KINDS = tuple(item.name for item in fields(Memory))
SMALL = 2_000_000_000  # bytes up to which MB are easier to read
Data = dict[str, Any]  # Any: what json.dumps takes


def print_report(found: Estimate, advice: Advice | None) -> None:
    """Facts, the table of phases, the verdict, and what would help."""
    console = Console(highlight=False, soft_wrap=True)
    for name, text in facts(found):
        console.print(f"{name:<10} {text}", markup=False)
    unit = Unit.of(found.peak.total)
    console.print(_phases(found, unit))
    for line in verdict(found, unit):
        console.print(line, markup=False)
    for line in () if advice is None else _advice(found, advice, unit):
        console.print(line, markup=False)


def facts(found: Estimate) -> Iterator[tuple[str, str]]:
    """Model, ranks, batch, rows and tokens: a line each."""
    case, census, rows = found.case, found.census, found.case.drawn
    groups = ", ".join(f"{name} {_count(census.count(name))}" for name in GROUPS if census.count(name))
    split = f" of a part that {case.tensor_parallel} ranks make whole" if case.tensor_parallel > 1 else ""
    learning = _count(sum(weight.num for weight in census.learning))
    yield "model", f"{_count(census.count())} parameters{split} ({groups}), {learning} learn"
    yield "ranks", f"{_ranks(found)}, {case.run_file.strategy.name}, {str(case.dtype).removeprefix('torch.')}"
    yield "batch", case.batch.describe()
    drawn, trained = rows.num_prompts * rows.group_size, case.trained.num_prompts * case.trained.group_size
    num = found.training.num_passes
    passes = f"{num} pass{'es' if num > 1 else ''} of at most {found.training.tokens:,} tokens"
    yield "per rank", f"{rows.num_prompts} prompts, {drawn} rows; {trained} rows in an update, in {passes}"
    lengths = f"prompts have up to {rows.prompt_tokens:,}, completions up to {rows.completion_tokens:,}"
    yield "tokens", f"at most {tokens_per_step(found):,} in a step: {lengths}"


def tokens_per_step(found: Estimate) -> int:
    """Over all ranks, a prompt counted once for all its completions."""
    case = found.case
    return case.batch.prompts_per_step * (case.lengths.prompt + case.batch.group_size * case.sampler.max_new_tokens)


def verdict(found: Estimate, unit: "Unit") -> Iterator[str]:
    """The peak, and whether it fits."""
    target, peak = found.case.target, found.peak
    yield f"peak       {unit.text(peak.total)} in {found.peak_phase}"
    if found.note:
        yield f"note       {found.note}"
    if target.limit is not None and target.usable is not None:
        limits = f"{unit.text(target.limit)} of which {SPARE:.0%} stay free ({unit.text(target.usable)})"
        yield f"verdict    {'fits' if found.fits else 'does not fit'} into {limits}"


def as_data(found: Estimate, advice: Advice | None) -> Data:
    """Everything, in bytes."""
    case, census = found.case, found.census
    learning = sum(weight.num for weight in census.learning)
    return {
        "parameters": {"total": census.count(), "learning": learning, **{name: census.count(name) for name in GROUPS}},
        "ranks": case.target.ranks,
        "device": case.target.kind,
        "dtype": str(case.dtype).removeprefix("torch."),
        "strategy": case.run_file.strategy.name,
        "batch": {
            "prompts_per_step": case.batch.prompts_per_step,
            "samples_per_step": case.batch.samples_per_step,
            "samples_per_update": case.batch.minibatch_size,
            "updates_per_step": case.batch.optimizer_steps_per_rollout,
            "prompts_per_rank": case.drawn.num_prompts,
            "passes_per_update": found.training.num_passes,
            "tokens_per_pass": found.training.tokens,
            "tokens_per_step": tokens_per_step(found),
            "prompt_tokens": case.lengths.prompt,
            "completion_tokens": case.sampler.max_new_tokens,
        },
        "phases": {name: _memory(memory) for name, memory in found.phases.items()},
        "peak": {"phase": found.peak_phase, **_memory(found.peak)},
        "limit": case.target.limit,
        "usable": case.target.usable,
        "fits": found.fits,
        "note": found.note,
        "advice": [] if advice is None else [_option(option, found) for option in advice.options],
        "together": None if advice is None or advice.together is None else _option(advice.together, found),
    }


@dataclass(frozen=True, slots=True)
class Unit:
    """What bytes are told in."""

    name: str
    size: int
    digits: int

    @classmethod
    def of(cls, largest: int) -> "Unit":
        """MB for what is small, else GB."""
        return cls("MB", 10**6, 0) if largest < SMALL else cls("GB", 10**9, 2)

    def number(self, num_bytes: int) -> str:
        """Without the unit's name."""
        return f"{num_bytes / self.size:,.{self.digits}f}"

    def text(self, num_bytes: int) -> str:
        """With it."""
        return f"{self.number(num_bytes)} {self.name}"


def _phases(found: Estimate, unit: Unit) -> Table:
    """A column for each phase; rows that are 0 throughout are left out."""
    table = Table(title=f"memory of one rank in {unit.name}", title_justify="left")
    table.add_column("")
    for phase in found.phases:
        table.add_column(phase, justify="right", style="bold" if phase == found.peak_phase else "")
    for name in KINDS:
        sizes = [getattr(memory, name) for memory in found.phases.values()]
        if any(sizes) and name != "host":
            table.add_row(name, *map(unit.number, sizes))
    table.add_section()
    table.add_row("total", *(unit.number(memory.total) for memory in found.phases.values()))
    if any(memory.host for memory in found.phases.values()):
        table.add_row("on the CPU", *(unit.number(memory.host) for memory in found.phases.values()))
    return table


def _advice(found: Estimate, advice: Advice, unit: Unit) -> Iterator[str]:
    """A line for each change, and what is enough together."""
    before, limited = found.case.target, found.fits is not None
    lines = [(option, option.change.describe(before)) for option in advice.options]
    if lines:
        yield "what would help, each by itself:"
    for option, text in lines:
        fits = ", fits" if option.estimate.fits else ""
        saved, peak = unit.number(option.saved), unit.number(option.estimate.peak.total)
        yield f"  saves {saved:>6}, peak {peak:>6}{fits}: {text} ({option.change.price})"
    if advice.together is not None:
        peak = unit.text(advice.together.estimate.peak.total)
        yield f"together   {peak}, fits: {advice.together.change.describe(before)}"
    elif limited and not any(option.estimate.fits for option, _ in lines):
        yield "together   all of these are not enough: take a smaller model, or more GPUs."


def _option(option: Option, found: Estimate) -> Data:
    return {
        "set": list(option.change.sets),
        "ranks": option.change.target.ranks,
        "change": option.change.describe(found.case.target),
        "saves": option.saved,
        "peak": option.estimate.peak.total,
        "fits": option.estimate.fits,
    }


def _memory(memory: Memory) -> Data:
    return {**{name: getattr(memory, name) for name in KINDS}, "total": memory.total}


def _ranks(found: Estimate) -> str:
    num = found.case.target.ranks
    if found.case.target.is_gpu:
        return f"{num} GPU{'s' if num > 1 else ''}"
    return f"{num} process{'es' if num > 1 else ''} on CPUs"


def _count(num: int) -> str:
    for size, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if num >= size:
            return f"{num / size:.3g}{name}"
    return str(num)
