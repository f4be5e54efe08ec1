"""Rollouts: our decoder against vLLM's CPU build, same weights and prompts, in the environment that has vLLM.

    OMP_NUM_THREADS=1 .venv-vllm/bin/python benchmarks/rollout_vllm.py --json vllm.json

`scripts/engine_environment.sh vllm` makes that environment. vLLM runs in this process, as the colocated engine does: a
request and a seed per sibling. Repeats alternate.
"""

import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
import typer
from rollout import GROUP, SCENARIOS, Measured, attention_of, model_of, prompts_of, run_embedded
from tiny_models import EOS
from transformers import Qwen2ForCausalLM
from vllm import LLM, SamplingParams

Row = dict[str, float | str]


def served(model: Qwen2ForCausalLM) -> LLM:
    """The same weights in vLLM, as the engine starts it."""
    from lightrft_engines.vllm_engine.cpu import ARGUMENTS, keep_weights_whole

    keep_weights_whole()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return LLM(
            folder, dtype="float32", skip_tokenizer_init=True, enforce_eager=True, kv_cache_memory_bytes=1 << 30,
            logprobs_mode="processed_logprobs", generation_config="vllm", max_num_seqs=256, **ARGUMENTS,
        )  # fmt: skip


def run_vllm(llm: LLM, prompts: torch.Tensor, longest: int, seed: int) -> int:
    """Tokens written by vLLM."""
    requests = [{"prompt_token_ids": ids} for ids in prompts.tolist() for _ in range(GROUP)]
    params = [
        SamplingParams(
            seed=seed * 10**6 + number, max_tokens=longest, logprobs=0, stop_token_ids=[EOS], ignore_eos=True,
            detokenize=False,
        )
        for number in range(len(requests))
    ]  # fmt: skip
    llm.reset_prefix_cache()
    return sum(len(one.outputs[0].token_ids) for one in llm.generate(requests, params, use_tqdm=False))


def compare(name: str, groups: int, repeats: int) -> list[Row]:
    """Both engines' medians in one scenario."""
    scenario = SCENARIOS[name]
    model = model_of(scenario, attention_of("embedded"))
    prompts = prompts_of(scenario, groups, model.config.vocab_size)
    llm = served(model)
    run = {
        "vllm": lambda seed: run_vllm(llm, prompts, scenario.longest, seed),
        "embedded": lambda seed: run_embedded(model, prompts, scenario, seed),
    }
    runs: dict[str, list[Measured]] = {engine: [] for engine in run}
    for repeat in range(repeats + 1):
        for engine, write in run.items():
            cpu, wall = time.process_time(), time.perf_counter()
            tokens = write(repeat)
            if repeat:  # the first one warms up
                runs[engine].append(Measured(time.process_time() - cpu, time.perf_counter() - wall, tokens))
    rows: list[Row] = [
        {
            "scenario": name,
            "sequences": float(groups * GROUP),
            "engine": engine,
            "tokens_per_cpu_s": statistics.median(one.tokens / one.cpu_s for one in measured),
            "tokens_per_wall_s": statistics.median(one.tokens / one.wall_s for one in measured),
        }
        for engine, measured in runs.items()
    ]
    for row in rows:
        row["ratio_cpu"] = float(row["tokens_per_cpu_s"]) / float(rows[0]["tokens_per_cpu_s"])
    llm.llm_engine.engine_core.shutdown()
    return rows


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    scenario: Annotated[str, typer.Option(help="Letters of the scenarios of rollout.py.")] = "ab",
    groups: Annotated[str, typer.Option(help="Numbers of prompts, with commas; each gets 8 completions.")] = "8,32",
    repeats: Annotated[int, typer.Option(help="Measured repeats after one to warm up.")] = 3,
) -> None:
    """Compare the embedded decoder with vLLM on this machine's CPU."""
    torch.set_num_threads(1)
    rows = [row for name in scenario for count in groups.split(",") for row in compare(name, int(count), repeats)]
    for row in rows:
        print("  ".join(f"{value:.2f}" if isinstance(value, float) else value for value in row.values()))
    if json_file:
        json_file.write_text(json.dumps({"repeats": repeats, "torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    typer.run(main)
