"""A decode step of the embedded engine against its arithmetic floor, one thread, groups of 8, a random Qwen2.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/decode_floor.py --json floor.json

The floor is what torch takes on this machine for the arithmetic that a step cannot do without: each layer's matrix
products with the model's own weights, the output layer's product, and attention over all keys and values that the rows
see, siblings sharing their prompt's. Attention is by torch's flash kernel or by two batched products without a softmax,
whichever is faster for the shape. Norms, rotary positions, residuals, softmax merging, embeddings, drawing tokens,
bookkeeping and Python are all above the floor. A step is `Session.advance`: the model, the draw, and the rows' lists.

Steps and floors alternate; figures are medians of thread CPU time.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from lightrft_core.data import Sampling
from lightrft_engines.attention import register_attention
from lightrft_engines.decode.compiled import CompiledStep
from lightrft_engines.decode.readers import SharedReader
from lightrft_engines.decode.rounded import rounded_twin
from lightrft_engines.decode.rows import Row, SharedPrompt
from lightrft_engines.decode.session import Session
from lightrft_engines.decode.steps import Step
from tiny_models import SMALL, Size, tiny_qwen2
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import Qwen2ForCausalLM

GROUP, WARM_UP, PREFILL = 8, 3, 8192
SIZES = {"small": SMALL, "wide": Size(hidden=1024, heads=16, kv_heads=4, intermediate=2816)}
LENGTHS = ((16, 32), (128, 128))
FLASH = torch._scaled_dot_product_flash_attention_for_cpu
Run = Callable[[], object]
Record = dict[str, float | str]
Part = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A batch in the middle of its completions: tokens that every row has of its prompt and of its own."""

    size: Size
    batch: int
    prompt: int
    own: int

    @property
    def num_prompts(self) -> int:
        """Groups of 8, where there are as many rows."""
        return max(1, self.batch // GROUP)


def model_for(kind: str, size: Size) -> tuple[nn.Module, Step | None]:
    """The module and its step: fp32, bf16, int8 or compiled (fp32)."""
    model = tiny_qwen2(None, size, attention=register_attention())
    if kind == "bf16":
        return model.bfloat16(), None
    if kind == "int8":
        return rounded_twin(model)[0], None
    return model, CompiledStep(model) if kind == "compiled" else None


def session_for(module: nn.Module, run: Step | None, case: Case, sampling: Sampling, steps: int) -> Session:
    """Rows that have written `case.own` tokens and go on for `steps`."""
    limit = case.own + steps + 1
    generator = torch.Generator().manual_seed(1)
    prompts = [
        SharedPrompt(tuple(torch.randint(2, case.size.vocabulary, (case.prompt,), generator=generator).tolist()))
        for _ in range(case.num_prompts)
    ]
    rows = [
        Row(
            (number, 0), str(number), prompts[number * case.num_prompts // case.batch], number, limit, frozenset(), None
        )
        for number in range(case.batch)
    ]
    reader = SharedReader(module, case.batch, limit, PREFILL, run=run)
    session = Session(reader, rows, sampling, case.batch, torch.device("cpu"))
    for _ in range(case.own):
        session.advance()
    return session


def attention_inputs(case: Case, dtype: torch.dtype) -> list[Part]:
    """A layer's queries, keys and values: over rows' own tokens, and over prompts' with siblings side by side."""
    size = case.size
    width, repeats = size.hidden // size.heads, size.heads // size.kv_heads

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, width, dtype=dtype)

    own, shared = (case.batch, size.kv_heads), (case.num_prompts, size.kv_heads)
    side_by_side = case.batch // case.num_prompts * repeats
    return [
        (random(*own, repeats), random(*own, case.own), random(*own, case.own)),
        (random(*shared, side_by_side), random(*shared, case.prompt), random(*shared, case.prompt)),
    ]


def products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention's two products alone."""
    return torch.matmul(torch.matmul(query, key.transpose(-1, -2)), value)


def floor_for(model: Qwen2ForCausalLM, case: Case) -> Run:
    """The arithmetic of one step, layer by layer."""
    dtype = model.lm_head.weight.dtype
    layers = [
        ([part for part in layer.modules() if isinstance(part, nn.Linear)], attention_inputs(case, dtype))
        for layer in model.model.layers
    ]
    inputs = {
        width: torch.randn(case.batch, width, dtype=dtype) for width in (case.size.hidden, case.size.intermediate)
    }
    attend = [_fastest(part) for part in layers[0][1]]

    def compute() -> None:
        for linears, parts in layers:
            for part in linears:
                linear(inputs[part.in_features], part.weight, part.bias)
            for way, part in zip(attend, parts, strict=True):
                way(*part)
        linear(inputs[case.size.hidden], model.lm_head.weight)

    return compute


def _fastest(part: Part) -> Callable[..., object]:
    return min((FLASH, products), key=lambda way: seconds(lambda: way(*part)))


def seconds(run: Run, repeats: int = 9) -> float:
    """Median of thread CPU time."""
    return statistics.median(measure({"": run}, repeats)[""])


def measure(runs: dict[str, Run], repeats: int) -> dict[str, list[float]]:
    """Seconds of thread CPU time of runs that alternate."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + WARM_UP):
        for name, run in runs.items():
            start = time.thread_time()
            run()
            if repeat >= WARM_UP:
                found[name].append(time.thread_time() - start)
    return found


def compare(case: Case, kinds: list[str], models: dict[str, tuple[nn.Module, Step | None]], steps: int) -> Record:
    """Milliseconds of a drawn step by kind, of greedy fp32 steps and of the floor, and the steps' ratios to it."""
    length = steps + WARM_UP
    runs: dict[str, Run] = {"floor": floor_for(tiny_qwen2(None, case.size), case)}
    for kind in kinds:
        runs[kind] = session_for(*models[kind], case, Sampling(1), length).advance
    runs["greedy"] = session_for(*models["fp32"], case, Sampling(1, temperature=0), length).advance
    medians = {name: 1000 * statistics.median(found) for name, found in measure(runs, steps).items()}
    record: Record = {"batch": case.batch, "prompt": case.prompt, "own": case.own}
    record |= {f"{name}_ms": value for name, value in medians.items()}
    record |= {
        f"{name}/floor": value / medians["floor"] for name, value in medians.items() if name in (*kinds, "greedy")
    }
    return record


def measured(size: Size, batches: str, kinds: list[str], steps: int) -> list[Record]:
    """For each number of rows (with commas) and each pair of lengths."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        models = {kind: model_for(kind, size) for kind in kinds}
        cases = [Case(size, int(batch), *lengths) for batch in batches.split(",") for lengths in LENGTHS]
        return [compare(case, kinds, models, steps) for case in cases]


def show(records: list[Record]) -> None:
    """One table."""
    columns = list(records[0])
    lines = [
        [f"{row[key]:.2f}" if isinstance(row[key], float) else str(row[key]) for key in columns] for row in records
    ]
    widths = [max(len(line[place]) for line in (columns, *lines)) for place in range(len(columns))]
    for line in (columns, *lines):
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    batches: Annotated[str, typer.Option(help="Numbers of rows, with commas.")] = "1,16,64,256",
    kinds: Annotated[
        str, typer.Option(help="Of fp32, bf16, int8, compiled, with commas; fp32 is always one.")
    ] = "fp32",
    size: Annotated[str, typer.Option(help="small (the model of rollout.py) or wide (hidden size 1024).")] = "small",
    steps: Annotated[int, typer.Option(help="Measured steps after three to warm up.")] = 32,
) -> None:
    """Compare decode steps with what their arithmetic takes."""
    records = measured(SIZES[size], batches, list(dict.fromkeys(("fp32", *kinds.split(",")))), steps)
    show(records)
    if json_file:
        json_file.write_text(
            json.dumps({"size": size, "steps": steps, "torch": torch.__version__, "rows": records}, indent=1)
        )


if __name__ == "__main__":
    typer.run(main)
