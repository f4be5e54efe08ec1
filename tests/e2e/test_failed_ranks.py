"""One of two ranks fails: the run ends soon, with the first error of the rank that failed as the last words."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

TROUBLE = Path(__file__).with_name("trouble.py")
CPU = {"CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def run_with(lightrft, tmp_path, tiny_run):
    """Trains with two ranks of which one gets into trouble; returns the process and the run's folder."""

    def run(how, *words, rank=1, step=1):
        (tmp_path / "run.yaml").write_text(tiny_run)
        sets = (f"plugins=[{TROUBLE}]", f"callbacks=[{{use: trouble, how: {how}, rank: {rank}, step: {step}}}]")
        options = [word for text in (*sets, "evaluation.task=null") for word in ("--set", text)]
        done = lightrft("train", "run.yaml", "--processes", "2", *options, *words, env=CPU, timeout=120)
        return done, tmp_path / "runs/tiny"

    return run


def status(run):
    return json.loads((run / "STATUS").read_text())


@pytest.mark.slow
def test_a_killed_rank_is_named_with_its_signal_and_the_run_goes_on_from_the_checkpoint(run_with, lightrft):
    done, run = run_with("kill", step=2)
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert re.match(
        r"error: rank 1 on \S+: killed by signal 9 \(SIGKILL\)\. That is often the kernel's memory killer", last
    )
    assert last.endswith(f"Go on with: lightrft train --resume {run}")
    assert "Traceback" not in done.stderr
    assert "closed by peer" not in done.stderr
    assert (status(run)["state"], "killed by signal 9" in status(run)["reason"]) == ("failed", True)
    again = lightrft("train", "--resume", "tiny", "--processes", "2", "--set", "callbacks=[]", env=CPU)
    assert again.returncode == 0, again.stderr
    assert "(step 1 of 4)" in again.stderr


def test_a_crash_is_one_paragraph_and_its_traceback_lies_in_the_ranks_file(run_with):
    done, run = run_with("crash")
    assert done.returncode == 1
    log = run / "logs/rank-00001.txt"
    *_, last = done.stderr.splitlines()
    assert re.match(r"error: rank 1 on \S+ failed with ZeroDivisionError: by zero \(trouble\.py:\d+\)\.", last)
    assert f"Its output is in {log}." in last
    assert "Traceback" not in done.stderr
    assert "Traceback" in log.read_text()
    assert "in crash" in log.read_text()


def test_a_rank_that_fails_keeps_its_own_words(run_with):
    done, run = run_with("fail")
    assert done.returncode == 1
    assert "callbacks: the disk is on fire. Put it out." in done.stderr.splitlines()[-1]
    assert "the disk is on fire" in status(run)["reason"]


@pytest.mark.slow
def test_a_rank_that_hangs_is_found_by_the_watchdog_and_ends_the_run(run_with):
    done, run = run_with("hang", "--set", "run.watchdog=10s", "--set", "run.watchdog_action=stop")
    assert done.returncode == 1
    assert re.search(
        r"warning: rank 1 has made no progress for 1\d s: it is in phase 'tell' of step 1 since", done.stderr
    )
    assert re.search(
        r"warning: rank 0 has made no progress for 1\d s: it is in phase 'save' of step 1 since", done.stderr
    )
    assert re.search(r"^error: rank [01] on .*run\.watchdog: rank [01] made no progress", done.stderr.splitlines()[-1])
    assert "in hang" in (run / "logs/rank-00001.txt").read_text()
    assert "in _together" in (run / "logs/rank-00000.txt").read_text()
    assert "watchdog" in status(run)["reason"]


@pytest.mark.slow
def test_torchrun_itself_may_start_the_ranks_and_then_reports_the_same_error(tmp_path, tiny_run, lightrft):
    (tmp_path / "run.yaml").write_text(tiny_run)
    sets = (f"plugins=[{TROUBLE}]", "callbacks=[{use: trouble, how: fail}]", "evaluation.task=null")
    made = lightrft("launch", "torchrun", "run.yaml", *[word for text in sets for word in ("--set", text)],
                    "--nodes", "1", "--gpus-per-node", "2")  # fmt: skip
    assert made.returncode == 0, made.stderr
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "lightrft_core.cli.main", "train", "--resume", "tiny"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "traceback : callbacks: the disk is on fire. Put it out." in done.stderr
