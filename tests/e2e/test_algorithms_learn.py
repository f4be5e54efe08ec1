"""A short form of benchmarks/learning.py: in twelve steps from its start model the quickstart's accuracy rises."""

from pathlib import Path

import pytest
from lightrft_core.metrics_file import read_metrics
from lightrft_core.overrides import parse_set
from lightrft_core.rundir import RunDir
from lightrft_core.runfile import open_run_file
from lightrft_core.session import Session

RUN = """
model: {path: MODEL}
task: {use: word_problems, split: train}
evaluation: {task: {use: word_problems, split: test, num: 256}, temperature: 1.0}
sampler: {group_size: 8, prompts_per_step: 16, max_new_tokens: 32}
rewards: [gsm8k]
optim: {lr: 3.0e-4, warmup_steps: 4, batch_size: 64}
strategy: {threads: 1}
run: {seed: 0, steps: 12}
rollouts: {save: false}
trackers: [jsonl]
"""
ALGORITHMS = ("grpo", "gspo", "cpgd", "reinforce_pp", "ppo")
POINTS = 20


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_algorithm_learns_within_twelve_steps(algorithm: str, tmp_path: Path, quickstart_model: Path, plugins):
    if algorithm not in {offer.descriptor.name for offer in plugins.offers("algorithm")}:
        pytest.skip(f"no installed plugin offers {algorithm}")
    source = tmp_path / "learn.yaml"
    source.write_text(RUN.replace("MODEL", str(quickstart_model)))
    run_file, _ = open_run_file(source, [parse_set(f"algorithm={algorithm}")], plugins)
    run_dir = RunDir.create(tmp_path, "learn")
    run_dir.write_run_file(run_file.to_yaml())
    Session(run_file, plugins, run_dir, lambda line: None).train(resume=False)
    accuracies = dict(read_metrics(run_dir.metrics)["eval/accuracy"])
    assert sorted(accuracies) == [0, 12]
    assert 100 * (accuracies[12] - accuracies[0]) >= POINTS, accuracies
