"""SGLang started by this process: what it leaves alone, and options without effect here."""

import os
import signal
import time
from pathlib import Path

import pytest
from lightrft_core.errors import UserError

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


@pytest.mark.parametrize(
    ("options", "where", "said"),
    [
        ({"sleep": True}, "engine.sleep", "frees memory by CUDA's virtual memory"),
        ({"quantization": "fp8"}, "engine.quantization", "rounds weights to fp8 on GPUs only"),
        ({"memory_fraction": 0.5}, "engine.memory_fraction", "engine.kv_cache_gb works on CPUs"),
        ({"mode": "server", "sync": "ipc"}, "engine.sync", "ipc moves weights between GPUs"),
        ({"mode": "server", "sync": "nccl"}, "engine.sync", "nccl moves weights between GPUs"),
        ({"dtype": "bfloat16"}, "engine.dtype", "the trainer's weights are float32"),
        ({"tensor_parallel": 2}, "engine.tensor_parallel", "there are 1 ranks"),
    ],
)
def test_an_option_without_effect_here_is_refused(start, options, where, said):
    with pytest.raises(UserError, match=said) as caught:
        start(**options)
    assert caught.value.where == where
