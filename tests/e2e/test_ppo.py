"""PPO learns the quickstart: the short version of what benchmarks measure."""

import json

import pytest


@pytest.mark.slow
def test_ppo_gains_30_points_in_20_steps(forked, tmp_path):
    sets = ("algorithm=ppo", "critic.lr=1e-3", "run.steps=20", "run.name=ppo")
    done = forked("train", "quickstart", *(word for item in sets for word in ("--set", item)))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "runs/ppo/metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["eval/accuracy"] for line in lines if "eval/accuracy" in line}
    assert scores[20] - scores[0] >= 0.3
    steps = [line for line in lines if "train/value_loss" in line]
    assert steps[-1]["train/value_loss"] < 0.5 * steps[0]["train/value_loss"]
    assert all("train/value_clip_fraction" in line for line in steps)


@pytest.mark.slow
def test_the_recipe_trains_a_critic_first_and_exports_the_average(forked, tmp_path, quickstart_model):
    row = json.dumps({"question": "What is 1 + 1?", "answer": "It is 2.\n#### 2"}) + "\n"
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(row * 8)
    data = ("--pretrain", quickstart_model, "--prompt_data", "train.jsonl", "--generate_max_len", "8")
    small = ("--rollout_batch_size", "8", "--train_batch_size", "8", "--set", "run.steps=3", "--set", "run.name=ppo")
    done = forked("train", "gsm8k_ppo", *data, *small)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "runs/ppo/metrics.jsonl").read_text().splitlines()]
    rates = [line["train/lr"] for line in lines if "train/lr" in line]
    assert rates[:2] == [0.0, 0.0] and rates[2] > 0
    exported = forked("export", "ppo", "--to", "out", "--ema")
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "out/model.safetensors").exists()


def test_the_average_and_the_critic_are_exported_on_request(forked, tmp_path):
    from safetensors.torch import load_file

    sets = (
        "algorithm=ppo",
        "critic.export=true",
        "strategy.ema=true",
        "run.steps=2",
        "run.name=short",
        "evaluation=null",
    )
    done = forked("train", "quickstart", *(word for item in sets for word in ("--set", item)))
    assert done.returncode == 0, done.stderr
    for words in (("--to", "last"), ("--to", "average", "--ema")):
        done = forked("export", "short", *words)
        assert done.returncode == 0, done.stderr
    last, average = (load_file(tmp_path / name / "model.safetensors") for name in ("last", "average"))
    assert last.keys() == average.keys()
    assert any((last[name] != average[name]).any() for name in last)
    assert (tmp_path / "last/critic/model.safetensors").is_file()
