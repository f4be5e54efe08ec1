"""One GPU, one command, one table: rollouts, passes, the fused head, weight sync, and a whole step against TRL.

    python benchmarks/gpu.py --json gpu.json

Random Qwen2 models of the sizes 0.5B and 1.5B (head and embedding apart), in what the run would choose: bf16 with fp32
masters where the GPU has it. Figures are medians of repeats after one that warms up. What does not fit into `--minutes`
is left out and says so. `--device cpu --sizes tiny` runs every line of it in seconds.
"""

import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Annotated, Any

import head
import rollout
import step
import torch
import torch.distributed as dist
import train
import typer
from flops import forward_flops, peak_flops
from lightrft_core.memory import process_peak
from lightrft_engines.attention import register_attention
from lightrft_engines.embedded import EmbeddedEngine
from lightrft_engines.embedded_config import EmbeddedConfig
from lightrft_engines.training.config import Fsdp2Config, SingleConfig
from lightrft_engines.training.fsdp2 import Fsdp2Strategy
from lightrft_engines.training.placement import choose_device, choose_dtype
from lightrft_engines.training.single import SingleStrategy
from tiny_models import TINY, Size
from transformers import AutoModelForCausalLM

Row = dict[str, Any]  # one line of the table, as JSON


@dataclass(frozen=True)
class Case:
    """A model, the rows of its passes (`groups` of 8), the tokens of its head, and its scenario in step.py."""

    size: Size
    groups: int
    prompt: int
    completion: int
    head_tokens: int
    scenario: str
    with_trl: bool = True


CASES = {
    "tiny": Case(TINY, 1, 16, 16, 512, "a"),
    "0.5B": Case(Size(896, 24, 14, 2, 4864, head.QWEN2), 8, 128, 256, 8192, "c"),
    "1.5B": Case(Size(1536, 28, 12, 2, 8960, head.QWEN2), 8, 128, 256, 8192, "c", with_trl=False),
}


@dataclass(frozen=True)
class Bench:
    """One model in a folder, on a device."""

    name: str
    case: Case
    folder: Path
    device: torch.device
    repeats: int
    deadline: float

    @property
    def model_folder(self) -> Path:
        """With a tokenizer."""
        return self.folder / "model"

    @property
    def dtype(self) -> torch.dtype:
        """What a run would compute in."""
        return choose_dtype("auto", self.device)

    def seconds(self, work: Callable[[], object]) -> float:
        """Of one call."""
        taken = []
        for repeat in range(self.repeats + 1):
            start = self._now()
            work()
            if repeat:  # the first one warms up
                taken.append(self._now() - start)
        return statistics.median(taken)

    def row(self, what: str, unit: str, value: float | str, other: float | str | None = None, versus: str = "") -> Row:
        """One figure, and what it is compared with."""
        return {"model": self.name, "what": what, "unit": unit, "value": value, "other": other, "versus": versus}

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def rollouts(bench: Bench) -> Iterator[Row]:
    """The embedded engine against transformers' `generate`: same weights, prompts and sampling."""
    scenario = step.SCENARIOS[bench.case.scenario]
    lengths = rollout.Scenario(scenario.title, scenario.prompt, scenario.mean, scenario.longest)
    prompts = rollout.prompts_of(lengths, bench.case.groups, bench.case.size.vocabulary)
    rates = {}
    for engine in rollout.ENGINES:
        attention = register_attention() if engine == "embedded" else "sdpa"
        options = {"dtype": bench.dtype, "attn_implementation": attention}
        model = AutoModelForCausalLM.from_pretrained(bench.model_folder, **options).to(bench.device).eval()
        run = rollout.run_embedded if engine == "embedded" else rollout.run_generate
        written: list[int] = []
        work = lambda run=run, model=model, written=written: written.append(  # noqa: E731  # runs at once
            run(model, prompts.to(bench.device), lengths, len(written))
        )
        seconds = bench.seconds(work)
        rates[engine] = statistics.mean(written[1:]) / seconds
    yield bench.row("rollouts", "tokens/s", rates["embedded"], rates["generate"], "generate")


def passes(bench: Bench) -> Iterator[Row]:
    """Log-probabilities without gradient, and an optimizer step; tokens that are computed, each prompt once."""
    case, setup = bench.case, train.setup_of(bench.model_folder)
    strategy = SingleStrategy(SingleConfig(device=str(bench.device)), setup)
    shape = train.Shape(case.prompt, case.completion, case.completion, is_fixed=True)
    batch = train.batch_of(setup, shape, case.groups, case.size.vocabulary)
    tokens = int(batch.lengths_B.sum()) + case.groups * case.prompt
    peak = peak_flops(bench.device, bench.dtype, bench.seconds)
    filled = bench.seconds(lambda: strategy.fill(batch, frozenset({"old_logprobs"})))
    batch.old_logprobs_BT = None
    stepped = bench.seconds(lambda: strategy.step(batch, train.OBJECTIVE))
    flops = forward_flops(strategy.policy, case.prompt + case.completion / 2)
    for what, seconds, factor in (("log-probabilities", filled, 1), ("training step", stepped, 3)):
        yield bench.row(what, "tokens/s", tokens / seconds)
        yield bench.row(f"{what}, MFU", "%", 100 * factor * flops * tokens / seconds / peak)
    strategy.close()


def fused_head(bench: Bench) -> Iterator[Row]:
    """Forward and backward of the head, with the entropy that a step logs, against logits in one piece."""
    case, found = bench.case, {}
    torch.manual_seed(0)
    options = {"dtype": bench.dtype, "device": bench.device}
    module = torch.nn.Linear(case.size.hidden, case.size.vocabulary, bias=False, **options)
    states = torch.randn(case.head_tokens, case.size.hidden, **options, requires_grad=True)
    targets = torch.randint(0, case.size.vocabulary, (case.head_tokens,), device=bench.device)

    def work(way: Callable[..., torch.Tensor]) -> None:
        module.weight.grad = states.grad = None
        way(module, states, targets, "logged").backward()

    for name, way in (("fused", head.fused), ("naive", head.naive)):
        try:
            seconds = bench.seconds(partial(work, way))
            found[name] = (peak_of(bench.device, partial(work, way)), seconds)
        except torch.OutOfMemoryError:
            found[name] = ("out of memory", "out of memory")
    for place, (what, unit) in enumerate((("head, memory of a pass", "MB"), ("head, time of a pass", "s"))):
        yield bench.row(what, unit, found["fused"][place], found["naive"][place], "logits in one piece")


def peak_of(device: torch.device, work: Callable[[], object]) -> float:
    """MB that one call takes over what there was."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    process_peak()
    before = process_peak() or float("nan")  # no more than there is now
    work()
    return ((process_peak() or float("nan")) - before) / 2**20


def sync(bench: Bench) -> Iterator[Row]:
    """Trained weights from FSDP2's shards, here one, into an engine's own copy."""
    setup = train.setup_of(bench.model_folder)
    strategy = Fsdp2Strategy(Fsdp2Config(device=str(bench.device)), setup)
    setup.strategy = strategy
    engine = EmbeddedEngine(EmbeddedConfig(), setup)
    size = sum(value.numel() * value.element_size() for _, value in strategy.weights())
    seconds = bench.seconds(lambda: engine.update_weights(strategy.weights, 1))
    yield bench.row("weight sync, fsdp2 to embedded", "GB/s", size / seconds / 1e9)
    strategy.close()
    dist.destroy_process_group()


def whole_step(bench: Bench) -> Iterator[Row]:
    """A GRPO step of 8 groups of 8, each side in a process of its own."""
    case, steps = bench.case, step.WARM_UP + bench.repeats
    sides = ("lightrft", "trl") if case.with_trl and find_spec("trl") else ("lightrft",)
    rates: dict[str, float] = {}
    for side in sides:
        left = bench.deadline - time.monotonic()
        try:
            run = step.alone(side, case.scenario, bench.folder, steps, 1, device=bench.device.type, timeout=left)
        except TimeoutExpired:
            break
        measured = run["steps"][step.WARM_UP :]
        rates[side] = sum(row["tokens"] for row in measured) / sum(row["wall_s"] for row in measured)
    if "lightrft" not in rates:
        yield left_out(bench, "whole GRPO step")
        return
    reason = "no time left" if "trl" in sides else "not installed: pip install trl"
    other = rates.get("trl", reason) if case.with_trl else None
    yield bench.row("whole GRPO step", "tokens/s", rates["lightrft"], other, "TRL")


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "rollouts": rollouts,
    "passes": passes,
    "head": fused_head,
    "sync": sync,
    "step": whole_step,
}


def left_out(bench: Bench, what: str) -> Row:
    """A line that says why there is no figure."""
    return bench.row(what, "", "no time left")


def measure(bench: Bench, parts: list[str]) -> Iterator[Row]:
    """Every part of one model, while there is time."""
    scenario = step.SCENARIOS[bench.case.scenario]
    step.prepare(bench.folder, scenario, bench.case.size, bench.dtype, str(bench.device))
    for part in parts:
        rows = list(PARTS[part](bench)) if time.monotonic() < bench.deadline else [left_out(bench, part)]
        for row in rows:
            print(json.dumps(row), file=sys.stderr, flush=True)
        yield from rows
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def show(rows: list[Row]) -> None:
    """One table in Markdown."""
    print("| model | what | LightRFT | other | ratio |\n|---|---|---|---|---|")
    for row in rows:
        value, other = row["value"], row["other"]
        both = isinstance(value, float) and isinstance(other, float) and other
        ratio = f"{value / other:.2f}" if both else "-"
        against = f"{shown(other)} ({row['versus']})" if other is not None else "-"
        print(f"| {row['model']} | {row['what']} | {shown(value)} {row['unit']} | {against} | {ratio} |")


def shown(value: float | str) -> str:
    """Three digits that count."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    device: Annotated[str, typer.Option(help="Where to measure.")] = "cuda",
    sizes: Annotated[str, typer.Option(help=f"Models, with commas: {', '.join(CASES)}.")] = "0.5B,1.5B",
    parts: Annotated[str, typer.Option(help="What to measure, with commas.")] = ",".join(PARTS),
    repeats: Annotated[int, typer.Option(min=1, help="Measured repeats after one to warm up.")] = 2,
    minutes: Annotated[float, typer.Option(min=0, help="Begin nothing new after so long.")] = 7.0,
) -> None:
    """Measure this GPU."""
    chosen, deadline, rows = choose_device(device), time.monotonic() + 60 * minutes, []
    for name in sizes.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            bench = Bench(name, CASES[name], Path(scratch), chosen, repeats, deadline)
            rows += list(measure(bench, parts.split(",")))
    show(rows)
    if json_file is not None:
        place = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else "cpu"
        found = {"rows": rows, "device": place, "dtype": str(choose_dtype("auto", chosen)), "torch": torch.__version__}
        json_file.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    typer.run(main)
