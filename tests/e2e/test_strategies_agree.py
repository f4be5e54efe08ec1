"""Ten steps of the quickstart's model under torchrun: every strategy on 2 and 4 ranks ends where one process does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "strategy_steps.py"
ENV = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
NAMES = {
    2: [f"{kind}/{way}" for kind in ("single", "ddp", "fsdp2") for way in ("packed", "padded", "accumulated")]
    + ["zero1/packed", "zero2/accumulated", "zero3/packed", "zero3/padded"],
    4: ["single/packed", "ddp/packed", "fsdp2/accumulated", "zero1/packed", "zero2/packed", "zero3/accumulated"],
}


def run(*words, launcher=()):
    command = [sys.executable, *launcher, str(SCRIPT), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **ENV}, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def expected(tmp_path_factory, quickstart_model):
    path = tmp_path_factory.mktemp("alone") / "weights.safetensors"
    run(quickstart_model, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_every_strategy_ends_where_one_process_does(expected, quickstart_model, size):
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}")
    output = run(quickstart_model, expected, *NAMES[size], launcher=launcher)
    report = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    assert list(report) == NAMES[size]
    assert {name: gaps for name, gaps in report.items() if max(gaps) > 1e-4} == {}
