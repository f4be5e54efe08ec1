"""What only a CUDA device can show; skipped elsewhere. Each run's self-test compares engine and trainer there."""

import json

import pytest

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_quickstart_learns_on_a_gpu(lightrft, tmp_path, precision):
    options = ["strategy.device=cuda", f"strategy.precision={precision}", "run.steps=20", "run.name=gpu"]
    words = [word for option in options for word in ("--set", option)]
    done = lightrft("train", "quickstart", *words, "--processes", "1")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "runs/gpu/metrics.jsonl").read_text().splitlines()]
    accuracy = {line["step"]: line["eval/accuracy"] for line in lines if "eval/accuracy" in line}
    assert accuracy[20] - accuracy[0] >= 0.3


def test_a_checkpoint_of_a_gpu_run_is_scored_alike_on_the_cpu(lightrft, tmp_path):
    base = ["--set", "strategy.precision=fp32", "--processes", "1"]
    done = lightrft("train", "quickstart", *base, "--set", "strategy.device=cuda", "--set", "run.steps=5",
                    "--set", "run.name=gpu", "--set", "evaluation.temperature=0")  # fmt: skip
    assert done.returncode == 0, done.stderr
    scores = []
    for device in ("cuda", "cpu"):
        scored = lightrft("eval", "gpu", "--json", "--set", f"strategy.device={device}")
        assert scored.returncode == 0, scored.stderr
        scores.append(json.loads(scored.stdout)["eval/accuracy"])
    assert scores[0] == pytest.approx(scores[1], abs=0.02)
