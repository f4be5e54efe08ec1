"""A rank that makes no progress tells its phase and its stacks, whatever it hangs in, and ends if it is asked to."""

import subprocess
import sys
import textwrap
import time

import pytest
from lightrft_core.watchdog import Watchdog

PROGRAM = """
import ctypes, os, sys, threading, time
from pathlib import Path
from lightrft_core.watchdog import Watchdog

folder = Path(sys.argv[1])

def end(what):
    print("ended:", what, flush=True)
    os._exit(1)

def said(line):
    print(line, flush=True)

def hang_in_python():
    threading.Event().wait()

def hang_in_a_call_that_lets_threads_run():
    ctypes.CDLL(None).pause()

def hang_in_a_call_that_lets_no_thread_run():
    ctypes.PyDLL(None).pause()

with Watchdog(0.8, folder, {rank}, said, {end}) as watchdog:
    watchdog.note(7, "generate")
    {hang}()
"""


def ended(folder, hang, *, rank=0, end="end"):
    code = textwrap.dedent(PROGRAM).format(rank=rank, hang=hang, end=end)
    return subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("hang", ["hang_in_python", "hang_in_a_call_that_lets_threads_run"])
def test_a_rank_that_hangs_tells_its_phase_and_stacks_and_ends(tmp_path, hang):
    done = ended(tmp_path, hang)
    assert done.returncode == 1
    assert "rank 0 has made no progress for 1 s: it is in phase 'generate' of step 7 since 20" in done.stdout
    assert f"the stacks of its threads are in {tmp_path}/rank-00000.txt" in done.stdout
    assert "ended: rank 0 made no progress for" in done.stdout
    for text in (done.stderr, (tmp_path / "rank-00000.txt").read_text()):
        assert f"in {hang}" in text
        assert "lightrft_core/watchdog.py" in text  # all threads


def test_a_call_that_lets_no_thread_run_is_found_too(tmp_path):
    done = ended(tmp_path, "hang_in_a_call_that_lets_no_thread_run", rank=4)
    assert done.returncode == 1
    text = (tmp_path / "rank-00004.txt").read_text()
    assert text.startswith("Timeout (")
    assert "in hang_in_a_call_that_lets_no_thread_run" in text


class Terminal(list):
    """What was said, with a way to wait for it."""

    def says(self, text: str) -> bool:
        deadline = time.monotonic() + 20
        while not any(text in line for line in self) and time.monotonic() < deadline:
            time.sleep(0.01)
        return any(text in line for line in self)


def test_a_slow_start_is_reported_and_never_ended(tmp_path):
    said, ended = Terminal(), []
    with Watchdog(0.2, tmp_path, 0, said.append, ended.append):
        assert said.says("it is in phase 'start' since")
        said.clear()
        assert said.says("it is in phase 'start' since")  # once more: after the time at which it would have ended
    assert ended == []


def test_it_reports_and_lets_the_run_go_on(tmp_path):
    said = Terminal()
    with Watchdog(0.2, tmp_path, 1, said.append) as watchdog:
        watchdog.note(3, "score")
        assert said.says("rank 1 has made no progress for 0 s: it is in phase 'score' of step 3")
        watchdog.note(4, "train")
        assert said.says("it is in phase 'train' of step 4")


def test_one_that_stalls_makes_the_others_print_their_stacks(tmp_path):
    told, silent = Terminal(), Terminal()
    with Watchdog(8, tmp_path, 0, told.append) as other, Watchdog(0.2, tmp_path, 1, silent.append):
        other.note(2, "agree")
        assert silent.says("rank 1 has made no progress")
        assert told.says("another rank has made no progress; rank 0 goes on: it is in phase 'agree' of step 2")
    assert "test_one_that_stalls" in (tmp_path / "rank-00000.txt").read_text()


def test_a_run_that_moves_leaves_nothing_behind(tmp_path):
    with Watchdog(60, tmp_path / "logs", 0, print) as watchdog:
        watchdog.note(1, "generate")
    assert not (tmp_path / "logs").exists()


def test_without_a_limit_nothing_is_watched(tmp_path):
    with Watchdog(None, tmp_path / "logs", 0, print) as watchdog:
        watchdog.note(1, "generate")
        assert not (tmp_path / "logs").exists()
