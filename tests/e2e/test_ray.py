"""`lightrft launch ray` on a Ray of its own: two workers learn as two processes do; a failing one ends the run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TROUBLE = Path(__file__).with_name("trouble.py")
CPUS = ("--workers", "2", "--gpus-per-worker", "0", "--address", "local")


@pytest.fixture
def ray_env(tmp_path):
    """Ray writes a token to the home folder, and reads from where a cluster is."""
    (tmp_path / "home").mkdir()
    return {"HOME": str(tmp_path / "home"), "CUDA_VISIBLE_DEVICES": "", "RAY_ADDRESS": ""}


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_quickstart_learns_with_two_workers(lightrft, tmp_path, ray_env):
    short = ("--set", "run.steps=20", "--set", "evaluation.every=null", "--set", "run.name=one")
    done = lightrft("launch", "ray", "quickstart", *CPUS, *short, env=ray_env)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/one"
    evaluations = {line["step"]: line["eval/accuracy"] for line in lines(run) if "eval/accuracy" in line}
    assert evaluations[20] >= evaluations[0] + 0.40
    assert json.loads((run / "manifest.json").read_text())["world_size"] == 2
    assert "on 2 ranks" in done.stdout
    assert "step 20/20" in done.stdout
    assert f"lightrft runs show {run}" in done.stdout


@pytest.mark.slow
def test_a_worker_that_fails_ends_the_run_with_its_error(lightrft, tmp_path, ray_env):
    sets = (f"plugins=[{TROUBLE}]", "callbacks=[{use: trouble, how: fail}]", "evaluation.task=null", "run.name=one")
    options = [word for text in sets for word in ("--set", text)]
    done = lightrft("launch", "ray", "quickstart", *CPUS, *options, env=ray_env)
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert last.startswith("error: rank 1 on ")
    assert "callbacks: the disk is on fire. Put it out." in last
    assert json.loads((tmp_path / "runs/one/STATUS").read_text())["state"] == "failed"


@pytest.mark.slow
def test_a_signal_to_the_driver_saves_and_the_run_goes_on_without_ray(forked, tmp_path, ray_env):
    sets = ("run.name=one", "run.steps=5000", "evaluation.task=null", "checkpoint.every=null", "trackers=[jsonl]")
    command = [sys.executable, "-m", "lightrft_core.cli.main", "launch", "ray", "quickstart", *CPUS]
    command += [word for text in sets for word in ("--set", text)]
    environment = {**os.environ, **ray_env, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    run = tmp_path / "runs/one"
    try:
        deadline = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 75, stderr
    assert f"(SIGINT). Go on with: lightrft launch ray --resume {run}" in stderr
    (saved,) = (run / "checkpoints").iterdir()
    step = int(saved.name.removeprefix("step_"))
    assert step >= 1
    again = forked("train", "--resume", "one", "--set", f"run.steps={step + 1}", env=ray_env)
    assert again.returncode == 0, again.stderr
    assert f"(step {step} of {step + 1})" in again.stderr


def test_more_gpus_than_there_are_is_refused_at_once(lightrft, tmp_path, ray_env):
    done = lightrft("launch", "ray", "quickstart", "--workers", "2", "--address", "local", env=ray_env)
    assert done.returncode == 3
    assert "2 workers need more than this Ray cluster has: 2 GPUs where there are 0" in done.stderr
    assert "--gpus-per-worker 0" in done.stderr
    assert list((tmp_path / "runs").iterdir()) == []
