"""Log-probabilities and entropies from hidden states: in one piece against the fused head, forward and backward.

    .venv/bin/python benchmarks/head.py --json head.json

In one piece means logits = head(states), log_softmax, gather, and the entropy from the same log_softmax. `step` is the
fused head as a training step uses it, `fused` the one whose loss comes later. Times are medians of runs that alternate
in one process, so that a busy machine disturbs all alike. Memory is the rise of a fresh process's peak over what it
held with model and inputs; it includes the gradients, which all need.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin distort CPU seconds; read when torch is loaded

import torch
import typer
from lightrft_engines.head import token_logprobs
from lightrft_engines.head_loss import HeadLoss, pays
from torch import Tensor, nn

QWEN2 = 151_936  # entries of Qwen2's vocabulary
NUMBERS = {"fp32": torch.float32, "bf16": torch.bfloat16}
WAYS = ("naive", "fused", "step")
ENTROPIES = ("none", "logged", "trained")  # a training step logs it, without gradient, unless a bonus trains it


@dataclass(frozen=True)
class Scenario:
    """One size of head, one kind of numbers."""

    tokens: int
    completion: int
    vocabulary: int
    width: int
    numbers: str
    entropy: str

    def make(self) -> tuple[nn.Linear, Tensor, Tensor]:
        """Head, hidden states and targets; made in place, so that the peak is not of this."""
        torch.manual_seed(0)
        kind = NUMBERS[self.numbers]
        head = nn.Linear(self.width, self.vocabulary, bias=False, dtype=kind)
        states = torch.randn(self.tokens, self.width, dtype=kind, requires_grad=True)
        return head, states, torch.randint(0, self.vocabulary, (self.tokens,))


@dataclass(frozen=True)
class Measured:
    """One forward and backward pass."""

    cpu_s: float
    wall_s: float


def naive(head: nn.Linear, states: Tensor, targets: Tensor, entropy: str) -> Tensor:
    """What a training loop writes down first."""
    logp = head(states).float().log_softmax(-1)
    value = logp.gather(-1, targets[:, None]).sum()
    if entropy == "logged":
        with torch.no_grad():
            (logp.exp() * logp).sum(-1)
    return value - (logp.exp() * logp).sum(-1).sum() if entropy == "trained" else value


def fused(head: nn.Linear, states: Tensor, targets: Tensor, entropy: str) -> Tensor:
    """Log-probabilities for a loss that comes later."""
    value, spread = token_logprobs(states, head, targets, 1.0, entropy=entropy != "none")
    return value.sum() + spread.sum() if spread is not None and entropy == "trained" else value.sum()


def step(head: nn.Linear, states: Tensor, targets: Tensor, entropy: str, completion: int) -> Tensor:
    """The loss with them, where a step does so."""
    if not pays(head.weight):
        return fused(head, states, targets, entropy)

    def share(rows: slice, value: Tensor, spread: Tensor | None) -> Tensor:
        return value.sum() + spread.sum() if spread is not None and entropy == "trained" else value.sum()

    lengths = [len(part) for part in targets.split(completion)]
    return HeadLoss(head, 1.0, entropy != "none").of(states, targets, lengths, share)


def timed(way: str, inputs: tuple[nn.Linear, Tensor, Tensor], scenario: Scenario) -> Measured:
    """One pass; gradients are fresh each time."""
    head, states, targets = inputs
    head.weight.grad = states.grad = None
    cpu, wall = time.process_time(), time.perf_counter()
    run = {"naive": naive, "fused": fused, "step": partial(step, completion=scenario.completion)}[way]
    run(head, states, targets, scenario.entropy).backward()
    return Measured(time.process_time() - cpu, time.perf_counter() - wall)


def memory_mb(field: str) -> float:
    """This process's resident memory: `VmRSS` now, `VmHWM` at its peak."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[field].split()[0]) / 1024


def run_alone(way: str, scenario: Scenario) -> float:
    """MB that one pass adds to this process."""
    inputs = scenario.make()
    small = Scenario(8, 8, 64, 16, scenario.numbers, scenario.entropy)
    timed(way, small.make(), small)  # loads what a first pass loads
    before = memory_mb("VmRSS")
    timed(way, inputs, scenario)
    return memory_mb("VmHWM") - before


def extra_mb(way: str, scenario: Scenario, threads: int) -> float:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--only", way, "--threads", str(threads), "--tokens", str(scenario.tokens)]
    command += ["--completion", str(scenario.completion)]
    command += ["--vocabulary", str(scenario.vocabulary), "--widths", str(scenario.width)]
    command += ["--numbers", scenario.numbers, "--entropy", scenario.entropy]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr[-4000:]}")
    return float(done.stdout.splitlines()[-1])


def compare(scenario: Scenario, threads: int, repeats: int) -> dict[str, Any]:  # Any: JSON
    """Both ways' medians and memory in one scenario."""
    inputs = scenario.make()
    runs: dict[str, list[Measured]] = {way: [] for way in WAYS}
    for repeat in range(repeats + 1):
        for way in WAYS:
            measured = timed(way, inputs, scenario)
            if repeat or not repeats:  # the first one warms up
                runs[way].append(measured)
    head, states, _ = inputs
    row = {**asdict(scenario), "threads": threads, "gradients_mb": (head.weight.nbytes + states.nbytes) / 2**20}
    del inputs, head, states
    for way in WAYS:
        row[f"{way}_wall_s"] = statistics.median(run.wall_s for run in runs[way])
        row[f"{way}_cpu_s"] = statistics.median(run.cpu_s for run in runs[way])
        row[f"{way}_mb"] = extra_mb(way, scenario, threads)
    return row


def show(rows: list[dict[str, Any]]) -> None:  # Any: JSON
    """As a table in Markdown."""
    print("| numbers | D | tokens | entropy | threads | way | s | ratio | by CPU time "
          "| MB | share | without gradients |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        for way in WAYS:
            wall, cpu = (row[f"naive_{kind}"] / row[f"{way}_{kind}"] for kind in ("wall_s", "cpu_s"))
            own, other, both = row[f"{way}_mb"], row["naive_mb"], row["gradients_mb"]
            print(f"| {row['numbers']} | {row['width']:,} | {row['tokens']:,} | {row['entropy']} | {row['threads']} "
                  f"| {way} | {row[f'{way}_wall_s']:.2f} | {wall:.2f} | {cpu:.2f} "
                  f"| {own:,.0f} | {share(own, other)} | {share(own - both, other - both)} |")  # fmt: skip


def share(part: float, whole: float) -> str:
    """In percent; of next to nothing there is none."""
    return f"{part / whole:.1%}" if whole > 1 else "-"


def scenarios(first: Scenario, widths: str, numbers: str, entropies: str) -> Iterator[Scenario]:
    """Every combination that is asked for."""
    for kind in numbers.split(","):
        for width in map(int, widths.split(",")):
            for entropy in entropies.split(","):
                yield replace(first, width=width, numbers=kind, entropy=entropy)


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of one pass.")] = 4096,
    completion: Annotated[int, typer.Option(min=1, help="Tokens of one sequence.")] = 512,
    vocabulary: Annotated[int, typer.Option(min=1, help="Entries of the vocabulary.")] = QWEN2,
    widths: Annotated[str, typer.Option(help="Sizes of a hidden state, with commas.")] = "896",
    numbers: Annotated[str, typer.Option(help="fp32, bf16, or both with a comma.")] = "fp32,bf16",
    entropy: Annotated[str, typer.Option(help="none, logged, trained, with commas.")] = ",".join(ENTROPIES),
    threads: Annotated[str, typer.Option(help="Threads of torch, with commas.")] = "1,2",
    repeats: Annotated[int, typer.Option(min=0, help="Measured passes; a first one warms up, unless this is 0.")] = 3,
    only: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Compare."""
    rows = []
    for count in map(int, threads.split(",")):
        torch.set_num_threads(count)
        first = Scenario(tokens, completion, vocabulary, 0, "", "")
        for scenario in scenarios(first, widths, numbers, entropy):
            if only is not None:
                print(run_alone(only, scenario))
                return
            rows.append(compare(scenario, count, repeats))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    show(rows)
    if json_file is not None:
        json_file.write_text(json.dumps({"rows": rows, "torch": torch.__version__}, indent=1))


if __name__ == "__main__":
    typer.run(main)
