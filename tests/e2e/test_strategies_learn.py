"""The quickstart learns under every sharded strategy with two local processes, as the command line starts them."""

import pytest

CPU = {"CUDA_VISIBLE_DEVICES": ""}
SHARDED = {"fsdp2": ("strategy.use=fsdp2",), "zero3": ("strategy.use=deepspeed", "strategy.stage=3")}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED)
def test_the_quickstart_learns_on_two_ranks(lightrft, tmp_path, read_metrics, name):
    sets = [word for text in SHARDED[name] for word in ("--set", text)]
    small = ("--set", "run.steps=20", "--set", "evaluation.every=null", "--set", f"run.name={name}")
    done = lightrft("train", "quickstart", "--processes", "2", *small, *sets, env=CPU)
    assert done.returncode == 0, done.stderr
    accuracy = [line["eval/accuracy"] for line in read_metrics(tmp_path / "runs" / name) if "eval/accuracy" in line]
    assert accuracy[-1] - accuracy[0] >= 0.3, accuracy
    assert max(line.get("gap/logprob_max_abs", 0.0) for line in read_metrics(tmp_path / "runs" / name)) < 1e-3
