"""How far `lightrft estimate` is from what runs take: peaks of real steps on a CPU, phase by phase.

    uv run benchmarks/memory.py --json memory.json

Each run has processes of its own. A peak is the kernel's (`VmHWM`, set back at the start of each phase), less what the
process had before its model was built, after a step of a tiny model had loaded every library, and less pages of shared
libraries. glibc keeps freed memory for later unless it is told not to: `MALLOC_MMAP_THRESHOLD_` makes it hand back at
once what is freed, so that the figure is what is alive. The estimate's line `overhead` is left out.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
ENVIRONMENT = {**ALLOCATOR, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
PHASES = ("generate", "train", "sync")  # those that take memory in these runs


@dataclass(frozen=True)
class Size:
    """A random Qwen2, and the rows of its runs."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    prompts: int = 8
    completion: int = 224


SIZES = {
    "5M": Size(256, 4, 8, 2, 704, 4096, False),
    "31M": Size(512, 8, 8, 2, 1408, 16384, True),
    "125M": Size(768, 12, 12, 4, 2048, 32000, False),
}
WARM_UP = Size(32, 2, 4, 2, 64, 512, False)
DIMENSIONS = ("hidden", "layers", "heads", "kv_heads", "intermediate", "vocabulary")
GROUP, PROMPT, WARM = 4, 128, "warm"


@dataclass(frozen=True)
class Scenario:
    """Settings of a run, and its ranks."""

    name: str
    ranks: int
    sets: tuple[str, ...] = ()


MAIN = (Scenario("single", 1), Scenario("fsdp2", 2, ("strategy.use=fsdp2",)))
MORE = (
    Scenario("ddp", 2, ("strategy.use=ddp",)),
    Scenario("deepspeed, stage 1", 2, ("strategy.use=deepspeed", "strategy.stage=1")),
    Scenario("deepspeed, stage 2", 2, ("strategy.use=deepspeed", "strategy.stage=2")),
    Scenario("deepspeed, stage 3", 2, ("strategy.use=deepspeed", "strategy.stage=3")),
    Scenario("single, checkpointing", 1, ("strategy.checkpointing=true",)),
    Scenario("single, bf16", 1, ("strategy.precision=bf16",)),
    Scenario("single, reference", 1, ("kl=k3",)),
    Scenario("single, critic", 1, ("advantage=gae",)),
    Scenario("single, padded", 1, ("strategy.packing=false",)),
    Scenario("single, LoRA", 1, ("model.lora={rank: 16}",)),
    Scenario("fsdp2, checkpointing", 2, ("strategy.use=fsdp2", "strategy.checkpointing=true")),
    Scenario("fsdp2, sequences shared by 2", 2, ("strategy.use=fsdp2", "strategy.sequence_parallel=2")),
)
REWARD = '''
def reward(responses, labels, references, response_ids):
    """Share of even token ids: cheap, and different for siblings."""
    return [sum(token % 2 == 0 for token in ids) / max(len(ids), 1) for ids in response_ids]
'''


def prepare(folder: Path, size: Size) -> None:
    """A model whose completions never end by themselves, prompts of one length, a run file."""
    import tiny_models
    import torch
    from step import byte_tokenizer

    for name, chosen in (("model", size), (WARM, WARM_UP)):
        dimensions = {field: getattr(chosen, field) for field in DIMENSIONS}
        model = tiny_models.tiny_qwen2(None, tiny_models.Size(**dimensions))
        if chosen.tied:
            model.config.tie_word_embeddings = True
            model.lm_head.weight = model.model.embed_tokens.weight
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = tiny_models.EOS, tiny_models.PAD
        model.save_pretrained(folder / name)
        byte_tokenizer(chosen.vocabulary).save_pretrained(folder / name)
    letters = torch.randint(97, 123, (64, PROMPT), generator=torch.Generator().manual_seed(1))
    rows = [{"prompt": "".join(map(chr, row))} for row in letters.tolist()]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)
    (folder / "run.yaml").write_text(f"""
algorithm: grpo
kl: null
model: {{path: ./model}}
task: {{path: ./prompts.jsonl, input_key: prompt}}
rewards: [{{use: python, path: "./reward.py:reward"}}]
sampler: {{group_size: {GROUP}, prompts_per_step: {size.prompts}, max_new_tokens: {size.completion}}}
optim: {{lr: 1.0e-6}}
strategy: {{threads: 1}}
trackers: [jsonl]
rollouts: {{save: false}}
run: {{steps: 3}}
""")


def run_here(folder: Path, sets: list[str], steps: int) -> dict[str, float]:
    """Peaks of this rank in MB, by phase, over all steps."""
    import lightrft_core.trainer as trainer_module
    import torch.distributed as dist
    from lightrft_core import launch
    from lightrft_core.phases import Phases

    if launch.world_size() > 1:
        dist.init_process_group("gloo")  # a run leaves alone what it did not open, so that two can have it
    take_steps(folder, [*sets, f"model.path={folder / WARM}"], 1)
    peaks: dict[str, float] = {}
    start, libraries = status("VmRSS"), library_bytes()

    class Watched(Phases):
        """Notes the peak of each phase."""

        @contextmanager
        def __call__(self, name: str) -> Iterator[None]:
            Path("/proc/self/clear_refs").write_text("5")  # sets the peak back
            with super().__call__(name):
                yield
            peak = status("VmHWM") - start - (library_bytes() - libraries)
            peaks[name] = max(peaks.get(name, 0.0), peak / 1e6)

    trainer_module.Phases = Watched
    take_steps(folder, sets, steps)
    return peaks


def take_steps(folder: Path, sets: list[str], num: int) -> None:
    """A run, as `lightrft train` makes it, without checkpoints."""
    from lightrft_core import launch
    from lightrft_core.assembly import build_core, build_trainer
    from lightrft_core.memory import unmetered
    from lightrft_core.overrides import parse_set
    from lightrft_core.rundir import RunDir
    from lightrft_core.runfile import open_run_file
    from lightrft_core.stopping import Stopper

    run_file, plugins = open_run_file(folder / "run.yaml", [parse_set(text) for text in sets])
    run_dir = RunDir.create(folder, f"run-{time.time_ns()}-{launch.rank()}")
    core = build_core(run_file, plugins, run_dir, launch.world_size())
    trainer = build_trainer(core, run_file, run_dir, Stopper())
    trainer.parts.meter = unmetered  # which would set the peak back before it is read here
    core.rewards.start()
    for _ in range(num):
        trainer.step()
    core.close()


def status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[name].split()[0]) * 1024


def library_bytes() -> int:
    """Resident pages of shared libraries: their number grows with what was called so far."""
    total, is_library = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            is_library = ".so" in line
        elif words[0] == "Rss:" and is_library:
            total += int(words[1]) * 1024
    return total


def measured(folder: Path, scenario: Scenario, steps: int) -> dict[str, float]:
    """The rank that needs most, by phase."""
    out = Path(tempfile.mkdtemp(dir=folder))
    words = [str(Path(__file__).resolve()), "--only", str(folder), "--out", str(out), "--steps", str(steps)]
    words += [word for text in scenario.sets for word in ("--set", text)]
    python = [sys.executable]
    if scenario.ranks > 1:
        python += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={scenario.ranks}"]
    call([*python, *words])
    ranks = [json.loads(file.read_text()) for file in out.iterdir()]
    return {phase: max(rank[phase] for rank in ranks) for phase in PHASES}


def estimated(folder: Path, scenario: Scenario) -> dict[str, float]:
    """What `lightrft estimate` says, in MB, without the overhead of Python and its libraries."""
    words = ["estimate", str(folder / "run.yaml"), "--processes", str(scenario.ranks), "--json"]
    words += [word for text in scenario.sets for word in ("--set", text)]
    phases = json.loads(call([sys.executable, "-m", "lightrft_core.cli.main", *words]))["phases"]
    phases["train"] = max(phases["train"], phases["update"], key=lambda memory: memory["total"])
    return {phase: (phases[phase]["total"] - phases[phase]["overhead"]) / 1e6 for phase in PHASES}


def call(words: list[str]) -> str:
    """A process's output."""
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT}, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-4000:]}")
    return done.stdout


def compare(size_name: str, scenario: Scenario, steps: int) -> dict[str, Any]:
    """One row: both figures for each phase, and for the whole run."""
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch), SIZES[size_name])
        told, found = estimated(Path(scratch), scenario), measured(Path(scratch), scenario, steps)
    row: dict[str, Any] = {"size": size_name, "scenario": scenario.name, "ranks": scenario.ranks}
    row |= {phase: {"estimate": told[phase], "measured": found[phase]} for phase in PHASES}
    return row | {"estimate": max(told.values()), "measured": max(found.values())}


def show(rows: list[dict[str, Any]]) -> None:
    """A Markdown table, MB."""
    print("| model | strategy | ranks | " + " | ".join(PHASES) + " | peak: estimate / measured | off by |")
    print("|---|---|---|" + "---|" * (len(PHASES) + 2))
    for row in rows:
        phases = [f"{row[phase]['estimate']:,.0f} / {row[phase]['measured']:,.0f}" for phase in PHASES]
        cells = [row["size"], row["scenario"], str(row["ranks"]), *phases]
        cells += [f"{row['estimate']:,.0f} / {row['measured']:,.0f}", f"{row['estimate'] / row['measured'] - 1:+.1%}"]
        print(f"| {' | '.join(cells)} |")


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    sizes: Annotated[str, typer.Option(help=f"Models, with commas: {', '.join(SIZES)}.")] = ",".join(SIZES),
    more: Annotated[bool, typer.Option(help="Other strategies and options too, of the first size.")] = False,
    steps: Annotated[int, typer.Option(help="Steps of each run; from the second on there is optimizer state.")] = 2,
    only: Annotated[Path | None, typer.Option(help="Run this folder here, as one rank.")] = None,
    out: Annotated[Path | None, typer.Option(help="With --only: the folder for this rank's figures.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="With --only: a setting.")] = None,
) -> None:
    """Compare estimates with measured peaks."""
    if only is not None and out is not None:
        peaks = run_here(only, list(sets or []), steps)
        (out / f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(peaks))
        return
    names = sizes.split(",")
    cases = [(name, scenario) for name in names for scenario in MAIN]
    cases += [(names[0], scenario) for scenario in MORE] if more else []
    rows = [compare(name, scenario, steps) for name, scenario in cases]
    show(rows)
    if json_file is not None:
        json_file.write_text(json.dumps({"rows": rows, "steps": steps}, indent=1))


if __name__ == "__main__":
    typer.run(main)
