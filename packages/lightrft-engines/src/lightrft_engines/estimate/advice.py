"""What to change where a run does not fit: every change is estimated anew, alone and together with others."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lightrft_core.errors import LightRFTError

from lightrft_engines.embedded_config import EmbeddedConfig
from lightrft_engines.estimate.phases import Estimate
from lightrft_engines.estimate.question import Question
from lightrft_engines.estimate.target import Target

WORTH = 0.01  # of the peak without overhead: what a change must save to be told


@dataclass(frozen=True, slots=True)
class Change:
    """Settings, and more ranks; `price` is what one pays for it."""

    sets: tuple[str, ...]
    price: str
    target: Target

    def describe(self, before: Target) -> str:
        """As one would write it on the command line."""
        ranks = [f"--gpus {self.target.ranks}"] if self.target.ranks != before.ranks else []
        return " ".join([*(f"--set {shlex.quote(text)}" for text in self.sets), *ranks])


@dataclass(frozen=True, slots=True)
class Option:
    """A change and what it makes of the peak."""

    change: Change
    saved: int
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Advice:
    """Changes alone, the one that saves most first; and where no single one is enough, some that are together."""

    options: tuple[Option, ...]
    together: Option | None


def advise(question: Question, before: Estimate) -> Advice:
    """Try everything that may help."""
    options = [option for change in _changes(before) if (option := _tried(question, before, change)) is not None]
    options.sort(key=lambda option: -option.saved)
    fits = before.case.target.limit is None or any(option.estimate.fits for option in options)
    return Advice(tuple(options), None if fits else _together(question, before, options))


def _tried(question: Question, before: Estimate, change: Change) -> Option | None:
    """None for what the run file refuses, what is not installed, and what saves nothing."""
    try:
        after = question.answer(change.target, change.sets)
    except LightRFTError:
        return None
    saved = before.peak.total - after.peak.total
    is_worth_it = saved > WORTH * (before.peak.total - before.peak.overhead)
    return Option(change, saved, after) if is_worth_it else None


def _together(question: Question, before: Estimate, options: Sequence[Option]) -> Option | None:
    """One change after the other, as long as it helps, until it fits; None where it never does."""
    chosen: Option | None = None
    for option in options:
        sets = option.change.sets if chosen is None else (*chosen.change.sets, *option.change.sets)
        ranks = max(
            option.change.target.ranks, before.case.target.ranks if chosen is None else chosen.change.target.ranks
        )
        target = replace(before.case.target, ranks=ranks)
        tried = _tried(question, before, Change(sets, "", target))
        if tried is not None and (chosen is None or tried.saved > chosen.saved):
            chosen = tried
        if chosen is not None and chosen.estimate.fits:
            return chosen
    return None


def _changes(before: Estimate) -> Iterator[Change]:
    """All that might help this run; what it has already saves nothing and falls out."""
    case = before.case
    target, rows = case.target, case.drawn
    longest = rows.prompt_tokens + rows.completion_tokens
    half = max(before.training.tokens // 2, longest)
    yield Change(("strategy.checkpointing=true",), "a third more time for training", target)
    yield Change((f"strategy.max_tokens_per_micro_batch={half}",), "more, smaller passes", target)
    if target.ranks > 1:
        yield Change(("strategy.use=fsdp2",), "weights travel between ranks", target)
        yield Change((f"strategy.sequence_parallel={2 * case.config.sequence_parallel}",), "activations travel", target)
    if target.is_gpu:
        yield from _for_gpus(target)
        yield Change((), "twice the GPUs", replace(target, ranks=2 * target.ranks))
    engine = case.run_file.engine.config
    if isinstance(engine, EmbeddedConfig):
        num = min(rows.num_prompts * rows.group_size, engine.max_batch_size)
        yield Change((f"engine.max_batch_size={max(1, num // 2)}",), "slower generation", target)
        yield Change((f"engine.max_prefill_tokens={max(1, engine.max_prefill_tokens // 4)}",), "slower reading", target)
    yield Change(("optim.optimizer=adamw_8bit",), "rounded optimizer state", target)
    yield Change(("model.lora={rank: 16}",), "only adapters learn", target)


def _for_gpus(target: Target) -> Iterator[Change]:
    yield Change(("engine.sleep=true",), "the engine gives its memory back and takes it again in each step", target)
    yield Change(("strategy.adam_offload=true",), "a slower update, on the CPU", target)
    yield Change(("strategy.optimizer_offload=true",), "optimizer state travels in each step", target)
    yield Change(("strategy.cpu_offload=true",), "much slower, CPU memory instead", target)
    yield Change(("strategy.reference_offload=true",), "the reference travels in each step", target)
    yield Change(("strategy.activation_offload=true",), "slower passes, CPU memory instead", target)
    yield Change(("strategy.precision=bf16",), "coarser numbers", target)
    yield Change(("strategy.master_weights=false",), "small updates are lost to rounding", target)
