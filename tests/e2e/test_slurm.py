"""`lightrft launch slurm` on two nodes that are this machine: fake SLURM programs start real ranks."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

SBATCH = """#!/bin/sh
cp "$1" "$FAKE/submitted.sh" && echo "Submitted batch job 4242"
"""
SCONTROL = """#!/bin/sh
case "$1" in
  show) printf 'localhost\\nlocalhost\\n' ;;
  requeue) echo "$2" >> "$FAKE/requeued" ;;
esac
"""
# As srun does: one task on each node, signals handed to all of them, the highest exit code of any.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
tasks = [subprocess.Popen(words, env={{**os.environ, "SLURM_NODEID": str(node)}}) for node in (0, 1)]
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, frame: [task.send_signal(number) for task in tasks])
sys.exit(max(task.wait() % 256 for task in tasks))
"""


class Slurm:
    """The cluster: what was submitted, and a way to start it as the node's daemon would."""

    def __init__(self, folder):
        self.folder = folder / "slurm"
        self.folder.mkdir()
        for name, text in (("sbatch", SBATCH), ("scontrol", SCONTROL), ("srun", SRUN)):
            program = self.folder / name
            program.write_text(text)
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
        self.env = {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "FAKE": str(self.folder),
            "CUDA_VISIBLE_DEVICES": "",
        }

    def start(self, restarts=0):
        """The job script, in a process group of its own."""
        job = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_CPUS_PER_TASK": "1"}
        restart = {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
        return subprocess.Popen(
            ["bash", self.folder / "submitted.sh"],
            env={**os.environ, **self.env, **job, **restart, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    @property
    def requeued(self):
        path = self.folder / "requeued"
        return path.read_text().split() if path.exists() else []


@pytest.fixture
def slurm(tmp_path):
    return Slurm(tmp_path)


@pytest.fixture
def submit(slurm, lightrft, tmp_path, tiny_run):
    """Submits the tiny run on two nodes with one rank each."""

    def run(*words):
        (tmp_path / "run.yaml").write_text(tiny_run)
        options = ("--nodes", "2", "--gpus-per-node", "1", "--cpus-per-gpu", "1", "--requeue")
        done = lightrft("launch", "slurm", "run.yaml", *options, *words, env=slurm.env)
        assert done.returncode == 0, done.stderr
        assert "Submitted batch job 4242" in done.stdout
        return tmp_path / "runs/tiny"

    return run


def steps(run):
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line["step"] for line in lines if "reward/mean" in line]


def ended(process):
    """Exit code and output, with nothing left running."""
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


def wait_for_step(run, step, process):
    deadline = time.monotonic() + 120
    while step not in steps(run):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_job_that_reaches_its_time_limit_saves_is_queued_again_and_goes_on_to_the_end(slurm, submit):
    run = submit("--set", "run.steps=60", "--set", "checkpoint.every=null", "--set", "evaluation.task=null")
    first = slurm.start()
    wait_for_step(run, 2, first)
    first.send_signal(signal.SIGUSR1)  # to the shell, which passes it on to srun, as SLURM does to the tasks
    code, output = ended(first)
    assert code == 75, output
    saved = max(steps(run))
    assert slurm.requeued == ["4242"]
    assert f"queued again: goes on from {run}/checkpoints/step_{saved:06d}" in output
    again = slurm.start(restarts=1)
    code, output = ended(again)
    assert code == 0, output
    assert f"resumed from {run}/checkpoints/step_{saved:06d} (step {saved} of 60)" in output
    assert steps(run) == list(range(1, 61))
    assert json.loads((run / "manifest.json").read_text())["world_size"] == 2
    assert json.loads((run / "STATUS").read_text())["state"] == "done"


@pytest.mark.slow
def test_a_rank_that_is_killed_on_one_node_ends_the_job_with_its_error_and_it_is_not_queued_again(slurm, submit):
    trouble = Path(__file__).with_name("trouble.py")
    run = submit("--set", f"plugins=[{trouble}]", "--set", "callbacks=[{use: trouble, how: kill}]")
    code, output = ended(slurm.start())
    assert code == 1, output
    assert "error: rank 1 on " in output
    assert "killed by signal 9 (SIGKILL)" in output
    assert "Traceback" not in output
    assert slurm.requeued == []
    status = json.loads((run / "STATUS").read_text())
    assert (status["state"], "rank 1" in status["reason"], "SIGKILL" in status["reason"]) == ("failed", True, True)
