"""Rollouts: our decoder against `model.generate`, same weights and prompts, groups of 8, one random 4M-parameter Qwen2.

    .venv/bin/python benchmarks/rollout.py --json rollout.json
    .venv/bin/python benchmarks/rollout.py --scenario "" --floor 1,16,64,256      # steps against their arithmetic floor
    .venv/bin/python benchmarks/rollout.py --scenario "" --anchors vllm,llama     # other engines on this CPU

The floor is explained in decode_floor.py; vLLM needs the environment of scripts/engine_environment.sh, llama.cpp comes
from the package index for the run (rollout_llama.py).

Repeats alternate between the two, so that a busy machine disturbs both alike; figures are medians. CPU seconds are of
all threads. Peak memory is that of a process of its own that does nothing else.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin distort CPU seconds; read when torch is loaded

import decode_floor
import torch
import typer
from lightrft_core.data import GenerateRequest, Sampling
from lightrft_engines.attention import register_attention
from lightrft_engines.decode.decoder import Decoder
from tiny_models import EOS, PAD, SMALL, tiny_qwen2
from transformers import Qwen2ForCausalLM

GROUP = 8


@dataclass(frozen=True)
class Scenario:
    """Lengths in tokens; `mean` None means that every completion has `longest` tokens."""

    title: str
    prompt: int
    mean: float | None
    longest: int


SCENARIOS = {
    "a": Scenario("16-token prompts, 32 tokens each", 16, None, 32),
    "b": Scenario("128-token prompts, geometric lengths (mean 64, at most 256)", 128, 64, 256),
}
ENGINES = ("generate", "embedded")
HERE = Path(__file__).parent
LLAMA = ("uv", "run", "--no-sync", "--with", "cyllama==0.2.18", "--with", "gguf==0.19.0")
ANCHORS = {
    "vllm": (HERE.parent / ".venv-vllm/bin/python", HERE / "rollout_vllm.py"),
    "llama": (*LLAMA, HERE / "rollout_llama.py"),
}


@dataclass(frozen=True)
class Measured:
    """One run of one engine."""

    cpu_s: float
    wall_s: float
    tokens: int


def prompts_of(scenario: Scenario, num: int, vocabulary: int) -> torch.Tensor:
    """Random prompts [num, tokens]."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(2, vocabulary, (num, scenario.prompt), generator=generator)


def model_of(scenario: Scenario, attention: str) -> Qwen2ForCausalLM:
    """The same weights for both engines."""
    return tiny_qwen2(scenario.mean, attention=attention)


def run_generate(model: Qwen2ForCausalLM, prompts: torch.Tensor, scenario: Scenario, seed: int) -> int:
    """Tokens written by transformers' sampler; the batch has one prompt length, so left padding costs it nothing."""
    torch.manual_seed(seed)
    out = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=scenario.longest,
        num_return_sequences=GROUP,
        use_cache=True,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return int((out[:, prompts.shape[1] :] != PAD).sum())


def run_embedded(model: Qwen2ForCausalLM, prompts: torch.Tensor, scenario: Scenario, seed: int) -> int:
    """Tokens written by ours."""
    sampling = Sampling(max_new_tokens=scenario.longest)
    requests = [
        GenerateRequest(str(index), tuple(ids), tuple(seed * 10**6 + index * GROUP + g for g in range(GROUP)), sampling)
        for index, ids in enumerate(prompts.tolist())
    ]
    groups = Decoder(model, [EOS], PAD).generate(requests)
    return sum(len(completion.token_ids) for group in groups for completion in group)


def timed(engine: str, model: Qwen2ForCausalLM, prompts: torch.Tensor, scenario: Scenario, seed: int) -> Measured:
    """One run."""
    run = run_generate if engine == "generate" else run_embedded
    cpu, wall = time.process_time(), time.perf_counter()
    tokens = run(model, prompts, scenario, seed)
    return Measured(time.process_time() - cpu, time.perf_counter() - wall, tokens)


def attention_of(engine: str) -> str:
    """Each engine runs the attention that it runs with in practice."""
    return register_attention() if engine == "embedded" else "sdpa"


def peak_mb(engine: str, name: str, groups: int, threads: int) -> float:
    """Peak resident memory in MB of a process of its own."""
    command = [sys.executable, __file__, "--only", engine, "--scenario", name, "--groups", str(groups)]
    out = subprocess.run([*command, "--threads", str(threads)], check=True, capture_output=True, text=True).stdout
    return float(out)


def compare(name: str, groups: int, threads: int, repeats: int) -> list[dict[str, float | str]]:
    """Both engines' medians in one scenario."""
    torch.set_num_threads(threads)
    scenario = SCENARIOS[name]
    models = {engine: model_of(scenario, attention_of(engine)) for engine in ENGINES}
    prompts = prompts_of(scenario, groups, models["embedded"].config.vocab_size)
    runs: dict[str, list[Measured]] = {engine: [] for engine in ENGINES}
    for repeat in range(repeats + 1):
        for engine in ENGINES:
            measured = timed(engine, models[engine], prompts, scenario, repeat)
            if repeat:  # the first one warms up
                runs[engine].append(measured)
    rows = []
    for engine in ENGINES:
        cpu_per_token = statistics.median(run.cpu_s / run.tokens for run in runs[engine])
        rows.append(
            {
                "scenario": name,
                "threads": threads,
                "engine": engine,
                "cpu_s": statistics.median(run.cpu_s for run in runs[engine]),
                "wall_s": statistics.median(run.wall_s for run in runs[engine]),
                "tokens": statistics.median(run.tokens for run in runs[engine]),
                "tokens_per_cpu_s": 1 / cpu_per_token,
                "tokens_per_wall_s": statistics.median(run.tokens / run.wall_s for run in runs[engine]),
                "peak_mb": peak_mb(engine, name, groups, threads),
            }
        )
    for row in rows:  # per token: the two draw different lengths
        row["ratio_cpu"] = row["tokens_per_cpu_s"] / rows[0]["tokens_per_cpu_s"]
        row["ratio_wall"] = row["tokens_per_wall_s"] / rows[0]["tokens_per_wall_s"]
    return rows


def run_alone(engine: str, name: str, groups: int) -> None:
    """Print the peak of resident memory in MB: `VmHWM`, because rusage inherits the parent's."""
    scenario = SCENARIOS[name]
    model = model_of(scenario, attention_of(engine))
    prompts = prompts_of(scenario, groups, model.config.vocab_size)
    timed(engine, model, prompts, scenario, 1)
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(fields["VmHWM"].split()[0]) / 1024)


def show(rows: list[dict[str, float | str]]) -> None:
    """One table."""
    columns = ("scenario", "threads", "engine", "cpu_s", "wall_s", "tokens", "tokens_per_cpu_s", "tokens_per_wall_s")
    columns = (*columns, "ratio_cpu", "ratio_wall", "peak_mb")
    shown = [[f"{row[key]:.2f}" if isinstance(row[key], float) else str(row[key]) for key in columns] for row in rows]
    widths = [max(len(line[place]) for line in (columns, *shown)) for place in range(len(columns))]
    for line in (columns, *shown):
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    for name, scenario in SCENARIOS.items():
        print(f"({name}) {scenario.title}; ratios are of tokens per second against generate")


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    scenario: Annotated[str, typer.Option(help="Letters of the scenarios to run.")] = "ab",
    threads: Annotated[str, typer.Option(help="Numbers of threads, with commas.")] = "1,2",
    groups: Annotated[int, typer.Option(help="Prompts; each gets 8 completions.")] = 8,
    repeats: Annotated[int, typer.Option(help="Measured repeats after one to warm up.")] = 5,
    floor: Annotated[str, typer.Option(help="Numbers of rows whose decode step is set against its floor.")] = "",
    anchors: Annotated[str, typer.Option(help="Other engines to compare with: vllm, llama, with commas.")] = "",
    only: Annotated[str | None, typer.Option(help="Run this engine once and print its memory.")] = None,
) -> None:
    """Compare the embedded decoder with transformers' generate."""
    counts = [int(count) for count in threads.split(",")]
    if only:
        torch.set_num_threads(counts[0])
        run_alone(only, scenario, groups)
        return
    rows = [row for count in counts for name in scenario for row in compare(name, groups, count, repeats)]
    if rows:
        show(rows)
    steps = decode_floor.measured(SMALL, floor, ["fp32"], 32) if floor else []
    if steps:
        decode_floor.show(steps)
    for anchor in anchors.split(",") if anchors else ():
        command = [*ANCHORS[anchor], "--repeats", str(repeats)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if json_file:
        settings = {"groups": groups, "group_size": GROUP, "repeats": repeats, "torch": torch.__version__}
        scenarios = {name: asdict(SCENARIOS[name]) for name in scenario}
        json_file.write_text(
            json.dumps({"settings": settings, "scenarios": scenarios, "rows": rows, "steps": steps}, indent=1)
        )


if __name__ == "__main__":
    typer.run(main)
