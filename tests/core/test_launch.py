"""Ranks come from the launcher's environment, GPUs from CUDA_VISIBLE_DEVICES or nvidia-smi, never from torch."""

import os
import re
import stat
from pathlib import Path

import pytest
from lightrft_core import launch
from lightrft_core.rundir import RunDir

SIGNALLING = """
import os
import signal
from pathlib import Path

from lightrft_core import hookimpl
from lightrft_core.descriptors import Component
from lightrft_core.sections import Section

LIGHTRFT_API = 1


class Config(Section):
    number: int


class Signals:
    def __init__(self, config, setup):
        self.number, self.rank = config.number, setup.world.rank

    def on_step(self, report):
        if self.rank == 0 and report.step == 2:
            status = Path(f"/proc/{os.getppid()}/status").read_text()  # torchrun's; its parent is what the user started
            os.kill(int(status.split("PPid:")[1].split()[0]), self.number)

    def on_evaluation(self, step, metrics):
        pass

    def on_save(self, step, path):
        pass

    def on_end(self, status):
        pass


@hookimpl
def lightrft_callbacks():
    yield Component(name="signals", target=__file__ + ":Signals", config=__file__ + ":Config", summary=".")
"""


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """An environment without launcher, GPUs or any program."""
    for name in ("RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return monkeypatch


def test_outside_a_launcher_there_is_one_rank(bare):
    assert (launch.rank(), launch.world_size(), launch.is_launched()) == (0, 1, False)


def test_under_a_launcher_its_environment_counts(bare):
    bare.setenv("RANK", "3")
    bare.setenv("WORLD_SIZE", "8")
    assert (launch.rank(), launch.world_size(), launch.is_launched()) == (3, 8, True)


@pytest.mark.parametrize(("visible", "num"), [("0", 1), ("0,1,5", 3), ("", 0), ("-1", 0), ("GPU-1a2b,MIG-3c", 2)])
def test_visible_devices_are_counted(bare, visible, num):
    bare.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert launch.num_gpus() == num


def test_without_nvidia_smi_there_is_no_gpu(bare):
    assert launch.num_gpus() == 0


@pytest.mark.parametrize(
    ("script", "num"),
    [
        ("echo 'GPU 0: A (UUID: x)'; echo '  MIG 1g'; echo 'GPU 1: A (UUID: y)'", 2),
        ("echo 'No devices' >&2; exit 9", 0),
    ],
)
def test_nvidia_smi_is_asked(bare, tmp_path, script, num):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    assert launch.num_gpus() == num


def test_the_ranks_exit_code_and_words_come_through(bare, tmp_path, capfd):
    bare.setenv("PATH", os.defpath)
    run_dir = RunDir.create(tmp_path, "one")
    run_dir.write_run_file("algorithm: grpoo\n")
    assert launch.torchrun(1, run_dir.path) == 2
    assert "Did you mean 'grpo'?" in capfd.readouterr().err


@pytest.mark.slow
def test_a_signal_to_what_the_user_started_stops_all_ranks_with_a_checkpoint(lightrft, tmp_path):
    (tmp_path / "signals.py").write_text(SIGNALLING)
    settings = (
        "plugins=[./signals.py]",
        "callbacks=[{use: signals, number: 15}]",
        "run.name=one",
        "run.steps=100000",
        "sampler.group_size=2",
        "sampler.prompts_per_step=2",
        "optim.batch_size=4",
        "strategy.micro_batch_size=2",
        "evaluation.task=null",
        "checkpoint.every=1000",
        "trackers=[]",
    )
    words = [word for setting in settings for word in ("--set", setting)]
    done = lightrft("train", "quickstart", "--processes", "2", *words, timeout=120)
    assert done.returncode == 75, done.stderr[-3000:]
    status = RunDir(tmp_path / "runs" / "one").read_status()
    assert (status.state, status.exit_code) == ("stopped", 75)
    [step] = [int(found) for found in re.findall(r"stopped after step (\d+) \(SIGTERM\)", status.reason)]
    assert [path.name for path in (tmp_path / "runs/one/checkpoints").iterdir()] == [f"step_{step:06d}"]
    assert f"lightrft train --resume {tmp_path / 'runs' / 'one'}" in done.stderr
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path) in read(path)]


def read(path):
    try:
        return path.read_text()
    except OSError:
        return ""
