"""What the tests of whole runs share: a run that takes a second, and how to read what it left behind."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from lightrft_core.store import RolloutStore

TINY_RUN = """
algorithm: grpo
model: {path: MODEL}
task: {use: word_problems, split: train, num: 64}
evaluation: {task: {use: word_problems, split: test, num: 8}, every: 3}
sampler: {group_size: 4, prompts_per_step: 4, max_new_tokens: 24}
rewards: [gsm8k]
kl: {use: k3, coef: 0.01, target: 0.02}
optim: {lr: 3.0e-4, batch_size: 8}
run: {name: tiny, steps: 4, seed: 7}
checkpoint: {every: 1, keep: 2}
trackers: [jsonl]
"""


@pytest.fixture(scope="session")
def tiny_run(quickstart_model: Path) -> str:
    """A run file: 4 steps of 16 short samples, every part that has state switched on, a checkpoint after each step."""
    return TINY_RUN.replace("MODEL", str(quickstart_model))


@pytest.fixture(scope="session")
def read_metrics() -> Callable[[Path], list[dict[str, float]]]:
    """The lines of a run's metrics.jsonl without the times, which no two runs share."""

    def read(run: Path) -> list[dict[str, float]]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [
            {name: value for name, value in line.items() if not name.startswith(("seconds/", "memory/", "throughput/"))}
            for line in lines
        ]

    return read


@pytest.fixture(scope="session")
def run_facts(read_metrics: Callable[[Path], list[dict[str, float]]]) -> Callable[[Path], dict[str, object]]:
    """What two equal runs have in common: metrics, the bytes of the newest checkpoint, every stored rollout."""

    def facts(run: Path) -> dict[str, object]:
        newest = max((run / "checkpoints").glob("step_*"))
        found = {path.relative_to(newest).as_posix(): path for path in newest.rglob("*.safetensors")}
        files = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()}
        store = RolloutStore(run / "rollouts.sqlite", readonly=True)
        rollouts = [
            (row.step, row.phase, row.prompt_id, row.index, row.token_ids, row.logprobs, row.reward)
            for row in store.search(limit=-1)
        ]
        store.close()
        return {"metrics": read_metrics(run), "checkpoint": newest.name, "files": files, "rollouts": sorted(rollouts)}

    return facts
