"""Two local processes train as one does: the same rewards and losses, one run folder, one answer to a signal."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

SMALL = ("--set", "run.steps=3", "--set", "evaluation.task.num=32", "--set", "run.name=small")
CPU = {"CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, lightrft_in, forked_in):
    """The same three steps by one process and by two."""
    folders = {}
    for num, work_in in ((1, forked_in), (2, lightrft_in)):
        folder = tmp_path_factory.mktemp(f"by{num}")
        done = work_in(folder)("train", "quickstart", "--processes", str(num), *SMALL, env=CPU)
        assert done.returncode == 0, done.stderr
        folders[num] = folder / "runs/small"
    return folders


@pytest.mark.slow
def test_two_processes_have_the_losses_and_rewards_of_one(runs, read_metrics):
    one, two = read_metrics(runs[1]), read_metrics(runs[2])
    assert [line["step"] for line in two] == [line["step"] for line in one] == [0, 1, 2, 3, 3]
    for alone, together in zip(one, two, strict=True):
        assert together.keys() == alone.keys()
        same = {name: value for name, value in alone.items() if not name.startswith("gap/")}
        assert {name: together[name] for name in same} == pytest.approx(same, abs=1e-4)


@pytest.mark.slow
def test_every_rollout_of_both_processes_is_stored_once(runs, lightrft_in, tmp_path):
    from lightrft_core.store import RolloutStore

    texts = []
    for num in (1, 2):
        store = RolloutStore(runs[num] / "rollouts.sqlite", readonly=True)
        texts.append(
            sorted((row.step, row.phase, row.prompt_id, row.index, row.text) for row in store.search(limit=-1))
        )
        store.close()
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_sigterm_to_the_parent_saves_and_exits_75_with_the_resume_command(tmp_path, lightrft):
    command = [sys.executable, "-m", "lightrft_core.cli.main", "train", "quickstart", "--processes", "2", *SMALL]
    command += ["--set", "run.steps=5000", "--set", "checkpoint.every=null", "--set", "trackers=[jsonl]"]
    metrics = tmp_path / "runs/small/metrics.jsonl"
    environment = {**os.environ, **CPU, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        _wait_until(lambda: metrics.exists() and '"step": 1' in metrics.read_text(), process)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75, stderr
    assert f"Go on with: lightrft train --resume {tmp_path}/runs/small" in stderr
    assert json.loads((tmp_path / "runs/small/STATUS").read_text())["state"] == "stopped"
    (saved,) = (tmp_path / "runs/small/checkpoints").iterdir()
    step = int(saved.name.removeprefix("step_"))
    again = lightrft("train", "--resume", "small", "--processes", "2", "--set", f"run.steps={step + 1}", env=CPU)
    assert again.returncode == 0, again.stderr
    assert f"(step {step} of {step + 1})" in again.stderr


def _wait_until(is_so, process) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
