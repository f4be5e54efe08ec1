"""`kill -9` at twenty moments, checkpoint writes included: the resumed runs equal the undisturbed one, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RUN_FILE = """
algorithm: grpo
model: {path: MODEL}
task: {use: word_problems, split: train, num: 64}
evaluation: {task: {use: word_problems, split: test, num: 8}, every: 3}
sampler: {group_size: 4, prompts_per_step: 4, max_new_tokens: 24}
rewards: [gsm8k]
kl: {use: k3, coef: 0.01, target: 0.02}
optim: {lr: 3.0e-4, batch_size: 8}
run: {steps: 8, seed: 7}
checkpoint: {every: 1, keep: 2}
trackers: [jsonl]
"""


@pytest.mark.slow
def test_killed_runs_resume_to_the_same_numbers(tmp_path, quickstart_model):
    source = tmp_path / "kill.yaml"
    source.write_text(RUN_FILE.replace("MODEL", str(quickstart_model)))
    done = subprocess.run(
        [sys.executable, HERE / "forked_runs.py", source, tmp_path, "20", "11"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert len(outcome["kills"]) >= 20
    assert "while saving" in outcome["kills"]
    assert all(not differences for differences in outcome["differing"].values()), outcome
