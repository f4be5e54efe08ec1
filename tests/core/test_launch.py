"""Ranks come from the launcher's environment, GPUs from CUDA_VISIBLE_DEVICES or nvidia-smi, never from torch."""

import os
import stat

import pytest
from lightrft_core import launch


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


def test_torchrun_passes_the_exit_code_on_and_shares_the_cores(bare, tmp_path, capfd):
    bare.setenv("PATH", os.defpath)
    bare.delenv("OMP_NUM_THREADS", raising=False)
    assert launch.torchrun(1, ["--version"]) == 0
    assert "lightrft " in capfd.readouterr().out
    assert launch.torchrun(1, ["train", "nowhere.yaml"]) != 0
    assert "nowhere.yaml: no such run file" in capfd.readouterr().err
