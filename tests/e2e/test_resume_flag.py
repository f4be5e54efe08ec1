"""`--load_checkpoint`: one command starts a run and goes on with it. `--save_interval`: a save after each pass."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lightrft_core.checkpoints import Checkpoints
from lightrft_core.command_line import resolve_command_line
from lightrft_core.rundir import RunDir
from lightrft_core.session import Session

from tests.core.real_run import SMALL

CPU = {"CUDA_VISIBLE_DEVICES": ""}
SIGNALLER = Path(__file__).with_name("signaller.py")


@pytest.fixture
def job(tmp_path, tiny_run):
    """A run file without a name, and the words of the command that trains by it."""
    (tmp_path / "job.yaml").write_text(tiny_run.replace("name: tiny, ", ""))
    return ("train", "job.yaml", "--load_checkpoint")


@pytest.mark.slow
def test_the_same_command_goes_on_after_a_kill_to_the_numbers_of_an_undisturbed_run(forked, tmp_path, job, run_facts):
    whole = tmp_path / "whole"
    words = (*job, "--set", f"plugins=[{SIGNALLER}]", "--set", "callbacks=[{use: signal_after, name: SIGKILL}]")
    assert forked(*words, env=CPU).returncode == -9
    run = tmp_path / "runs/job"
    dry = forked(*words, "--dry-run", env=CPU)
    assert f"run        would go on in {run} from step 2" in dry.stdout.replace("\n", " ")
    again = forked(*words, env=CPU)
    assert again.returncode == 0, again.stderr
    assert f"resumed from {run}/checkpoints/step_000002 (step 2 of 4)" in again.stderr
    assert "changed since then" not in again.stderr
    assert "WARNING" not in again.stderr
    other = forked(*words, "--set", "optim.lr=0.5", "--dry-run", env=CPU)
    assert f"WARNING {run} had other settings, which its numbers depend on: optim.lr " in other.stderr
    undisturbed = forked(*words, "--save_path", whole, env=CPU)
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert "no checkpoint was saved yet: starting from step 0" in undisturbed.stderr
    assert run_facts(run) == run_facts(whole / "job")
    done = forked(*words, env=CPU)  # as --resume of a run that is done: there is nothing left to do
    assert done.returncode == 0, done.stderr
    assert run_facts(run) == run_facts(whole / "job")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["job"]


@pytest.mark.slow
def test_ranks_of_a_bare_torchrun_agree_that_there_is_no_run_yet(forked, tmp_path, job):
    words = (*job, "--set", "evaluation.task=null", "--set")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    first = subprocess.run(
        [*torchrun, "-m", "lightrft_core.cli.main", *words, "run.steps=2"],
        cwd=tmp_path,
        env={**os.environ, **CPU, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert first.returncode == 0, first.stderr[-3000:]
    assert "no checkpoint was saved yet: starting from step 0" in first.stderr
    again = forked(*words, "run.steps=3", env=CPU)
    assert again.returncode == 0, again.stderr
    assert "step_000002 (step 2 of 3)" in again.stderr
    assert "changed since then: run.steps 2 -> 3, processes 2 -> 1" in again.stderr
    assert "WARNING" not in again.stderr
    assert Checkpoints(tmp_path / "runs/job/checkpoints", keep=9).steps() == [2, 3]


@pytest.mark.parametrize(
    ("flags", "saved"),
    [
        (("--save_interval", "1"), [2, 3, 5, 6, 7]),  # of six prompts by four
        (("--save_interval", "2"), [3, 6, 7]),
        (("--save_interval", "2", "--save_steps", "4"), [3, 4, 6, 7]),
    ],
)
def test_save_interval_saves_with_the_step_that_ends_a_pass(tmp_path, flags, saved):
    small = [item for item in SMALL if not item.startswith(("checkpoint.", "evaluation."))]
    sets = [*small, "evaluation.task=null", "selftest.enabled=false", "trackers=[]", "task.num=6", "run.steps=null"]
    sets += ["run.episodes=4.5", "sampler.prompts_per_step=4", "checkpoint.keep=9"]
    run_file, plugins = resolve_command_line("quickstart", sets, list(flags))
    run_dir = RunDir.create(tmp_path, "run")
    run_dir.write_run_file(run_file.to_yaml())
    Session(run_file, plugins, run_dir, lambda line: None).train(resume=False)
    assert Checkpoints(run_dir.checkpoints, keep=9).steps() == saved
