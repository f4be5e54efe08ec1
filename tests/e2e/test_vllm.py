"""The quickstart learns with a real vLLM, in this process and in a server, as with the embedded engine."""

import json

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

STEPS = 12


def check_learning(lightrft, tmp_path, *engine):
    """A short quickstart learns, and the engine serves what the trainer trained."""
    words = ["train", "quickstart", "--set", "run.name=run", "--set", f"run.steps={STEPS}"]
    for setting in ("evaluation.at_start=false", "evaluation.at_end=false", "evaluation.every=null", *engine):
        words += ["--set", setting]
    done = lightrft(*words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "self-test passed" in done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "runs/run/metrics.jsonl").read_text().splitlines()]
    rewards = [row["reward/mean"] for row in rows]
    assert len(rewards) == STEPS
    assert sum(rewards[:3]) / 3 < 0.5
    assert sum(rewards[-3:]) / 3 > 0.7
    assert max(row["gap/logprob_max_abs"] for row in rows) < 1e-3


@pytest.mark.parametrize("mode", ["colocated", "server"])
def test_the_quickstart_learns(lightrft, tmp_path, mode):
    check_learning(lightrft, tmp_path, "engine.use=vllm", f"engine.mode={mode}")
