"""SGLang started by this process: what it leaves alone."""

import os
import signal
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.sglang, pytest.mark.slow]


def test_starting_and_generating_leaves_this_process_as_it_was(colocated):
    before, after = colocated.states
    for what in before:
        assert before[what] == after[what], what
    colocated.engine.generate(colocated.requests(3))
    assert before["signals"] == {number: signal.getsignal(number) for number in before["signals"]}


def test_an_idle_scheduler_leaves_the_processor_to_the_trainer(colocated):
    pids = [child.pid for child in colocated.engine._backend._inside._children]
    before = [_seconds(pid) for pid in pids]
    time.sleep(2)
    spent = sum(_seconds(pid) - one for pid, one in zip(pids, before, strict=True))
    assert spent < 0.6


def _seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
