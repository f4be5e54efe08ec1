"""PPO learns the quickstart: the short version of what benchmarks measure."""

import json

import pytest


@pytest.mark.slow
def test_ppo_gains_30_points_in_20_steps(lightrft, tmp_path):
    sets = ("algorithm=ppo", "critic.lr=1e-3", "run.steps=20", "run.name=ppo")
    done = lightrft("train", "quickstart", *(word for item in sets for word in ("--set", item)))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "runs/ppo/metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["eval/accuracy"] for line in lines if "eval/accuracy" in line}
    assert scores[20] - scores[0] >= 0.3
    steps = [line for line in lines if "train/value_loss" in line]
    assert steps[-1]["train/value_loss"] < 0.5 * steps[0]["train/value_loss"]
    assert all("train/value_clip_fraction" in line for line in steps)
