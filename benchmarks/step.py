"""A whole GRPO step: ours against TRL's GRPOTrainer, same weights, same prompts, 8 groups of 8, one 4M-parameter Qwen2.

    uv run --group bench benchmarks/step.py --json step.json

Each side runs in processes of its own, alternating, so that a busy machine disturbs both alike. Figures are medians
over all measured steps; the first two of each process warm up. Both are on-policy, one optimizer step per rollout, in
fp32, without KL, without gradient checkpointing. Rewards are a cheap function of the token ids.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin distort CPU seconds; read when torch is loaded

import typer

if TYPE_CHECKING:
    import torch
    from tiny_models import Size
    from transformers import PreTrainedTokenizerFast

GROUP, PROMPTS, WARM_UP = 8, 8, 2
SIDES = ("trl", "lightrft")


@dataclass(frozen=True)
class Scenario:
    """Lengths in tokens; `mean` None: every completion has `longest`."""

    title: str
    prompt: int
    mean: float | None
    longest: int


SCENARIOS = {
    "a": Scenario("16-token prompts, 32 tokens each", 16, None, 32),
    "b": Scenario("128-token prompts, geometric lengths (mean 64, at most 256)", 128, 64, 256),
    "c": Scenario("128-token prompts, geometric lengths (mean 256, at most 512)", 128, 256, 512),
}
REWARD = '''
def reward(responses, labels, references, response_ids):
    """Share of even token ids: cheap, and different for siblings."""
    return [sum(token % 2 == 0 for token in ids) / max(len(ids), 1) for ids in response_ids]
'''


def prepare(
    folder: Path,
    scenario: Scenario,
    size: "Size | None" = None,
    dtype: "torch.dtype | None" = None,
    device: str = "cpu",
) -> None:
    """Write model, tokenizer, prompts and reward that both sides use."""
    import torch
    from tiny_models import EOS, PAD, SMALL, tiny_qwen2

    model = tiny_qwen2(scenario.mean, size or SMALL, device=device).to(dtype or torch.float32)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = EOS, PAD
    model.save_pretrained(folder / "model")
    byte_tokenizer(model.config.vocab_size).save_pretrained(folder / "model")
    generator = torch.Generator().manual_seed(1)
    letters = torch.randint(ord("a"), ord("z") + 1, (256, scenario.prompt), generator=generator)
    rows = [{"prompt": "".join(map(chr, row))} for row in letters.tolist()]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)


def byte_tokenizer(vocabulary_size: int) -> "PreTrainedTokenizerFast":
    """One token a byte, so that lengths are known; the other ids decode to words. Survives a reload beside Qwen2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import Qwen2TokenizerFast

    names = ["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    names += [f"word{number}" for number in range(len(names), vocabulary_size)]
    tokenizer = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = Qwen2TokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token=None)
    fast.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    return fast


def run_lightrft(folder: Path, scenario: Scenario, steps: int, threads: int, device: str) -> dict[str, Any]:
    """CPU and wall seconds of each step, tokens, and the share of time outside generating and training."""
    from lightrft_core.assembly import build_core, build_trainer
    from lightrft_core.memory import unmetered
    from lightrft_core.rundir import RunDir
    from lightrft_core.runfile import open_run_file
    from lightrft_core.stopping import Stopper

    run_file = folder / "run.yaml"
    run_file.write_text(f"""
algorithm: grpo
kl: null
model: {{path: ./model}}
task: {{path: ./prompts.jsonl, input_key: prompt}}
rewards: [{{use: python, path: "./reward.py:reward"}}]
sampler: {{group_size: {GROUP}, prompts_per_step: {PROMPTS}, max_new_tokens: {scenario.longest}}}
optim: {{lr: 1.0e-6}}
strategy: {{threads: {threads}, device: {device}}}
trackers: [jsonl]
run: {{steps: {steps}}}
""")
    resolved, plugins = open_run_file(run_file, [])
    run_dir = RunDir.create(folder, f"run-{time.time_ns()}")
    core = build_core(resolved, plugins, run_dir, 1)
    trainer = build_trainer(core, resolved, run_dir, Stopper())
    trainer.parts.meter = unmetered  # it sets the peak back in every phase, and here the whole process's is compared
    core.rewards.start()

    def measured() -> Iterator[dict[str, float]]:
        for _ in range(steps):
            cpu, wall = time.process_time(), time.perf_counter()
            report = trainer.step()
            trainer.parts.trackers[0].log(report)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            model_s = report.seconds["generate"] + report.seconds["train"]
            tokens = sum(len(rollout.token_ids) for group in report.groups for rollout in group.rollouts)
            yield {"cpu_s": cpu, "wall_s": wall, "tokens": tokens, "overhead": 1 - model_s / wall}

    rows = list(measured())
    core.close()
    return {"steps": rows, "peak_mb": peak_mb(device)}


def run_trl(folder: Path, scenario: Scenario, steps: int, threads: int, device: str) -> dict[str, Any]:
    """The same for TRL."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    marks: list[tuple[float, float]] = []
    tokens: list[int] = []

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:  # Any: TRL hands over every column
        tokens.append(sum(map(len, completion_ids)))
        return [sum(token % 2 == 0 for token in ids) / max(len(ids), 1) for ids in completion_ids]

    class Clock(TrainerCallback):
        """Marks the end of each step."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:  # Any: transformers' callback signature
            marks.append((time.process_time(), time.perf_counter()))

        def on_step_end(self, *_: Any, **__: Any) -> None:  # Any: transformers' callback signature
            marks.append((time.process_time(), time.perf_counter()))

    config = GRPOConfig(
        output_dir=str(folder / f"trl-{time.time_ns()}"),
        per_device_train_batch_size=GROUP * PROMPTS,
        num_generations=GROUP,
        max_completion_length=scenario.longest,
        max_steps=steps,
        learning_rate=1e-6,
        beta=0.0,
        top_k=0,
        loss_type="grpo",
        gradient_checkpointing=False,
        bf16=device != "cpu",
        use_cpu=device == "cpu",
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    dataset = load_dataset("json", data_files=str(folder / "prompts.jsonl"), split="train")
    GRPOTrainer(model, reward, config, train_dataset=dataset, processing_class=tokenizer, callbacks=[Clock()]).train()
    spans = zip(marks, marks[1:], tokens, strict=False)
    rows = [{"cpu_s": new[0] - old[0], "wall_s": new[1] - old[1], "tokens": count} for old, new, count in spans]
    return {"steps": rows, "peak_mb": peak_mb(device)}


def peak_mb(device: str) -> float:
    """Peak of this process's resident memory: `VmHWM`, because rusage inherits the parent's. Of a GPU torch's."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) / 1024


def alone(
    side: str, name: str, folder: Path, steps: int, threads: int, *, device: str = "cpu", timeout: float | None = None
) -> dict[str, Any]:
    """One side in a process of its own."""
    command = [sys.executable, __file__, "--only", side, "--scenario", name, "--folder", str(folder)]
    command += ["--steps", str(steps), "--threads", str(threads), "--device", device]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(name: str, steps: int, threads: int, repeats: int) -> list[dict[str, float | str]]:
    """Medians of both sides in one scenario; per token, since the two draw different lengths."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder, SCENARIOS[name])
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(repeats):
            for side in SIDES:
                runs[side].append(alone(side, name, folder, steps, threads))
    rows: list[dict[str, float | str]] = []
    for side in SIDES:
        measured = [step for run in runs[side] for step in run["steps"][WARM_UP:]]
        row: dict[str, float | str] = {"scenario": name, "threads": threads, "side": side}
        row |= {key: statistics.median(step[key] for step in measured) for key in ("cpu_s", "wall_s", "tokens")}
        row["tokens_per_cpu_s"] = sum(s["tokens"] for s in measured) / sum(s["cpu_s"] for s in measured)
        row["tokens_per_wall_s"] = sum(s["tokens"] for s in measured) / sum(s["wall_s"] for s in measured)
        row["peak_mb"] = statistics.median(run["peak_mb"] for run in runs[side])
        row["overhead"] = statistics.median(step.get("overhead", float("nan")) for step in measured)
        rows.append(row)
    for row in rows:
        for key in ("cpu", "wall"):
            row[f"ratio_{key}"] = float(row[f"tokens_per_{key}_s"]) / float(rows[0][f"tokens_per_{key}_s"])
    return rows


def show(rows: list[dict[str, float | str]]) -> None:
    """One table."""
    columns = list(rows[0])
    lines = [[f"{row[key]:.3f}" if isinstance(row[key], float) else str(row[key]) for key in columns] for row in rows]
    widths = [max(len(line[place]) for line in (columns, *lines)) for place in range(len(columns))]
    for line in (columns, *lines):
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    for name in dict.fromkeys(str(row["scenario"]) for row in rows):
        print(f"({name}) {SCENARIOS[name].title}; ratios are of tokens per second against TRL")


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    scenario: Annotated[str, typer.Option(help="Letters of the scenarios to run.")] = "ab",
    threads: Annotated[str, typer.Option(help="Numbers of threads, with commas.")] = "1,2",
    steps: Annotated[int, typer.Option(help="Steps of a process, two to warm up included.")] = 7,
    repeats: Annotated[int, typer.Option(help="Processes of each side, alternating.")] = 2,
    only: Annotated[str | None, typer.Option(help="Run this side here and print its figures.")] = None,
    folder: Annotated[Path | None, typer.Option(help="With --only: where model and prompts lie.")] = None,
    device: Annotated[str, typer.Option(help="With --only: cpu or cuda.")] = "cpu",
) -> None:
    """Compare whole steps."""
    counts = [int(count) for count in threads.split(",")]
    if only is not None and folder is not None:
        run = run_trl if only == "trl" else run_lightrft
        print(json.dumps(run(folder, SCENARIOS[scenario], steps, counts[0], device)))
        return
    rows = [row for count in counts for name in scenario for row in compare(name, steps, count, repeats)]
    show(rows)
    if json_file is not None:
        json_file.write_text(json.dumps({"rows": rows, "steps": steps, "repeats": repeats}, indent=1))


if __name__ == "__main__":
    typer.run(main)
