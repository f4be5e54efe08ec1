"""Training passes: packed, balanced, prompt-sharing micro-batches against padded ones; strategies on several ranks.

    python benchmarks/train.py --json train.json --plot train.png

`layouts` and `sharing` time forward and backward passes of one random Qwen2 over the same rows, cut in different ways;
repeats alternate, figures are medians, tokens are those that exist (padding is not counted). `ranks` times whole
optimizer steps of each strategy, `scaling` the parts of a step over batch size, length and ranks; each rank has one
thread, so that more ranks than cores share them.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer
from lightrft_core.data import Batch, Group, LossOutput, Prompt, Rollout
from lightrft_core.objective import Objective
from lightrft_core.protocols import Layout, Setup
from lightrft_core.recipe_files import RECIPES
from lightrft_core.sections import ModelSection, OptimSection, RunSection, SamplerSection
from lightrft_engines.attention import register_attention
from lightrft_engines.config import TextConfig
from lightrft_engines.text import TextAdapter
from lightrft_engines.training.microbatch import Limits, cut_packed, cut_padded
from tiny_models import SMALL, TINY, Size, tiny_qwen2
from transformers import AutoTokenizer

Rows = list[dict[str, Any]]  # Any: numbers and names of one line of a table
GROUP = 8
BUDGET = 2048
OBJECTIVE = Objective(lambda inputs: LossOutput(-inputs.logprobs_BT * inputs.advantages_BT), "token_mean")
STRATEGIES = {
    "single": ("training.single:SingleStrategy", "SingleConfig", {}),
    "ddp": ("training.single:DDPStrategy", "DDPConfig", {}),
    "fsdp2": ("training.fsdp2:Fsdp2Strategy", "Fsdp2Config", {}),
    "fsdp2, sequence_parallel 2": ("training.fsdp2:Fsdp2Strategy", "Fsdp2Config", {"sequence_parallel": 2}),
}


@dataclass(frozen=True)
class Shape:
    """Lengths in tokens: means of geometric distributions and their limits, or exact where `is_fixed`."""

    prompt: int
    completion: int
    longest: int
    is_fixed: bool = False

    def lengths(self, num: int, mean: int, draw: torch.Generator) -> list[int]:
        """Lengths of `num` texts."""
        if self.is_fixed:
            return [mean] * num
        drawn = torch.empty(num).exponential_(1 / mean, generator=draw).long() + 1
        return [int(length) for length in drawn.clamp(max=self.longest)]


LONG_TAIL = Shape(prompt=96, completion=128, longest=1024)
TWICE = Shape(prompt=256, completion=128, longest=256, is_fixed=True)


def folder_of(size: Size, path: Path) -> Path:
    """The model with a tokenizer, as adapters want it."""
    tiny_qwen2(None, size).save_pretrained(path)
    AutoTokenizer.from_pretrained(RECIPES / "quickstart-model").save_pretrained(path)
    return path


def setup_of(folder: Path) -> Setup:
    """What strategies and adapters are built with."""
    setup = Setup(
        run=RunSection(),
        optim=OptimSection(lr=1e-4),
        sampler=SamplerSection(),
        model_section=ModelSection(path=str(folder)),
        run_dir=folder,
        num_optimizer_steps=100,
    )
    setup.model = TextAdapter(TextConfig(path=str(folder)), setup)
    return setup


def batch_of(setup: Setup, shape: Shape, num_groups: int, vocabulary: int, seed: int = 0) -> Batch:
    """Groups of random rollouts with random advantages."""
    draw = torch.Generator().manual_seed(seed)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, vocabulary, (length,), generator=draw).tolist())

    groups = []
    for number, length in enumerate(shape.lengths(num_groups, shape.prompt, draw)):
        texts = [ids(own) for own in shape.lengths(GROUP, shape.completion, draw)]
        rollouts = [
            Rollout(str(number), index, text, "", (-1.0,) * len(text), "stop", 0, reward=float(index % 2))
            for index, text in enumerate(texts)
        ]
        groups.append(Group(Prompt(str(number), ({"role": "user", "content": "x"},)), ids(length), rollouts))
    batch = setup.require_model().collate(groups)
    batch.advantages_BT = torch.randn(len(batch), 1, generator=draw).expand(batch.mask_BT.shape).contiguous()
    return batch


def num_tokens(batch: Batch) -> int:
    """Tokens of all rows as if each stood alone."""
    return int(batch.lengths_B.sum()) + sum(map(len, batch.prompt_token_ids))


def spread_siblings(batch: Batch) -> list[int]:
    """Rows in an order in which no two neighbours share a prompt."""
    return [row for index in range(GROUP) for row in range(index, len(batch), GROUP)]


def by_budget(batch: Batch, rows: list[int]) -> list[list[int]]:
    """Rows one after another into passes of so many tokens, each with its own prompt."""
    parts: list[list[int]] = [[]]
    used = 0
    for row in rows:
        size = len(batch.prompt_token_ids[row]) + int(batch.lengths_B[row])
        if parts[-1] and used + size > BUDGET:
            parts.append([])
            used = 0
        parts[-1].append(row)
        used += size
    return parts


def ways(batch: Batch) -> dict[str, tuple[Layout, list[list[int]]]]:
    """Cuts by name; the first is what others are compared with."""
    rows = list(range(len(batch)))
    return {
        "padded, 8 rows as they come": ("padded", [rows[start : start + 8] for start in rows[::8]]),
        "padded, like lengths, by tokens": ("padded", cut_padded(batch, rows, Limits(None, BUDGET))),
        "packed, each with its prompt": ("packed", by_budget(batch, spread_siblings(batch))),
        "packed, prompts shared": ("packed", cut_packed(batch, rows, Limits(None, BUDGET))),
    }


def pass_over(module: Any, adapter: TextAdapter, batch: Batch, way: tuple[Layout, list[list[int]]]) -> float:
    """CPU seconds of forward and backward passes over all rows. Any: a transformers model."""
    module.zero_grad()
    start = time.process_time()
    for rows in way[1]:
        part = batch.rows(rows)
        found = adapter.logprobs(module, part, layout=way[0])
        (-(found.logprobs_BT * part.advantages_BT).masked_fill(~part.mask_BT, 0.0).sum() / len(batch)).backward()
    return time.process_time() - start


def gradient_of(module: Any) -> torch.Tensor:  # Any: a transformers model
    """All gradients as one vector."""
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters()])


def compare_cuts(folder: Path, shape: Shape, num_groups: int, repeats: int) -> Rows:
    """Tokens per CPU second of each cut, and how far its gradient is from the first one's."""
    setup = setup_of(folder)
    adapter: Any = setup.require_model()  # Any: the text adapter, with its own module type
    register_attention()
    module = adapter.load("policy")
    batch = batch_of(setup, shape, num_groups, module.config.vocab_size)
    seconds: dict[str, list[float]] = {name: [] for name in ways(batch)}
    gradients = {}
    for repeat in range(repeats + 1):
        for name, way in ways(batch).items():
            taken = pass_over(module, adapter, batch, way)
            gradients[name] = gradient_of(module)
            if repeat:  # the first one warms up
                seconds[name].append(taken)
    rates = {name: num_tokens(batch) / statistics.median(taken) for name, taken in seconds.items()}
    first = next(iter(rates))
    scale = float(gradients[first].abs().max())
    return [
        {
            "cut": name,
            "passes": len(ways(batch)[name][1]),
            "tokens_per_cpu_s": rate,
            "ratio": rate / rates[first],
            "gradient_off_by": float((gradients[name] - gradients[first]).abs().max()) / scale,
        }
        for name, rate in rates.items()
    ]


def on_ranks(work: Callable[[int], Any], size: int) -> Any:  # Any: what the work returns on rank 0
    """`work(rank)` on forked gloo ranks."""
    context = torch.multiprocessing.get_context("fork")
    queue = context.Queue()
    with tempfile.TemporaryDirectory() as folder:

        def enter(rank: int) -> None:
            torch.set_num_threads(1)
            store = f"file://{folder}/store"
            dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=timedelta(minutes=5))
            found = work(rank)
            if rank == 0:
                queue.put(found)
            dist.barrier()

        processes = [context.Process(target=enter, args=(rank,)) for rank in range(size)]
        for process in processes:
            process.start()
        found = queue.get(timeout=600)
        for process in processes:
            process.join()
    return found


def time_steps(folder: Path, use: str, shape: Shape, num_groups: int, rank: int, size: int, repeats: int) -> Any:
    """Median seconds of the parts of a step on this rank. Any: JSON."""
    target, config_name, options = STRATEGIES[use]
    module, name = target.split(":")
    config = getattr(import_module("lightrft_engines.training.config"), config_name)(threads=1, **options)
    setup = setup_of(folder)
    strategy = getattr(import_module(f"lightrft_engines.{module}"), name)(config, setup)
    whole = batch_of(setup, shape, num_groups, 1024)
    mine = whole.rows([row for row in range(len(whole)) if (row // GROUP) % size == rank])
    times: dict[str, list[float]] = {"log-probabilities": [], "optimizer step": []}
    for _ in range(repeats + 1):
        dist.barrier()
        start = time.perf_counter()
        strategy.fill(mine, frozenset({"old_logprobs"}))
        middle = time.perf_counter()
        strategy.step(mine, OBJECTIVE)
        times["log-probabilities"].append(middle - start)
        times["optimizer step"].append(time.perf_counter() - middle)
    found: dict[str, float] = {part: statistics.median(taken[1:]) for part, taken in times.items()}
    return found | {"tokens": num_tokens(whole)}


def compare_strategies(folder: Path, num_groups: int, size: int, repeats: int) -> Rows:
    """Whole steps of every strategy on `size` ranks."""
    rows: Rows = []
    for use in STRATEGIES:
        found = on_ranks(
            lambda rank, use=use: time_steps(folder, use, LONG_TAIL, num_groups, rank, size, repeats), size
        )
        seconds = found["log-probabilities"] + found["optimizer step"]
        rows.append({"strategy": use, "ranks": size, "seconds": seconds, "tokens_per_s": found["tokens"] / seconds})
    for row in rows:
        row["time_of_single"] = row["seconds"] / rows[0]["seconds"]
    return rows


def scale(folder: Path, repeats: int) -> Rows:
    """The parts of a step of `fsdp2` over batch size, completion length and ranks."""
    base = {"groups": 4, "completion": 64, "ranks": 1}
    axes = {"groups": (2, 4, 8, 16), "completion": (32, 64, 128, 256), "ranks": (1, 2)}
    rows: Rows = []
    for axis, values in axes.items():
        for value in values:
            point = base | {axis: value}
            shape = Shape(prompt=64, completion=point["completion"], longest=1024, is_fixed=True)
            size = point["ranks"]
            found = on_ranks(
                lambda rank, s=shape, p=point, n=size: time_steps(folder, "fsdp2", s, p["groups"], rank, n, repeats),
                size,
            )
            rows.append({"axis": axis, "value": value, **found})
    return rows


def draw(rows: Rows, path: Path) -> None:
    """Seconds of each part over each axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = list(dict.fromkeys(row["axis"] for row in rows))
    figure, panels = pyplot.subplots(1, len(axes), figsize=(4 * len(axes), 3.2), layout="constrained")
    for axis, panel in zip(axes, panels, strict=True):
        own = [row for row in rows if row["axis"] == axis]
        for part in ("log-probabilities", "optimizer step"):
            panel.plot([row["value"] for row in own], [row[part] for row in own], marker="o", label=part)
        panel.set(xlabel=axis, ylabel="seconds", ylim=(0, None))
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(path, dpi=120)


def show(title: str, rows: Rows) -> None:
    """As a table in Markdown."""
    if not rows:
        return
    columns = list(rows[0])
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(
            "| "
            + " | ".join(f"{row[key]:.3g}" if isinstance(row[key], float) else str(row[key]) for key in columns)
            + " |"
        )


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the scaling here.")] = None,
    parts: Annotated[str, typer.Option(help="Of layouts, sharing, ranks, scaling.")] = "layouts,sharing,ranks,scaling",
    groups: Annotated[int, typer.Option(help="Prompts; each has 8 completions.")] = 8,
    ranks: Annotated[int, typer.Option(help="Ranks of the comparison of strategies.")] = 2,
    repeats: Annotated[int, typer.Option(help="Measured repeats after one to warm up.")] = 3,
    tiny: Annotated[bool, typer.Option(help="A smaller model.")] = False,
) -> None:
    """Measure what was asked for, and print a table each."""
    torch.set_num_threads(1)
    found: dict[str, Rows] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = folder_of(TINY if tiny else SMALL, Path(temporary))
        measures: dict[str, tuple[str, Callable[[], Rows]]] = {
            "ranks": ("Strategies", lambda: compare_strategies(folder, groups, ranks, repeats)),
            "scaling": ("Scaling of fsdp2", lambda: scale(folder, repeats)),
            "layouts": ("Long-tailed lengths", lambda: compare_cuts(folder, LONG_TAIL, groups, repeats)),
            "sharing": ("Prompts twice as long", lambda: compare_cuts(folder, TWICE, groups, repeats)),
        }
        for part, (title, measure) in measures.items():
            if part in parts.split(","):
                found[part] = measure()
                show(title, found[part])
    if plot is not None and "scaling" in found:
        draw(found["scaling"], plot)
    if json_file is not None:
        json_file.write_text(json.dumps({"torch": torch.__version__, **found}, indent=1))


if __name__ == "__main__":
    typer.run(main)
