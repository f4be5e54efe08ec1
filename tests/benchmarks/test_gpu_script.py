"""The script for GPUs runs from end to end on a CPU with a tiny model, and says what it left out."""

import json
from importlib.util import find_spec

import pytest

from tests.benchmarks.test_scripts import run

FIGURES = {
    "rollouts": "tokens/s",
    "log-probabilities": "tokens/s",
    "log-probabilities, MFU": "%",
    "training step": "tokens/s",
    "training step, MFU": "%",
    "head, memory of a pass": "MB",
    "head, time of a pass": "s",
    "weight sync, fsdp2 to embedded": "GB/s",
    "whole GRPO step": "tokens/s",
}


@pytest.mark.slow
def test_every_part_measures_something_on_a_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    done = run("gpu.py", "--device", "cpu", "--sizes", "tiny", "--repeats", "1", "--json", str(out))
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["device"] == "cpu"
    assert {row["what"]: row["unit"] for row in found["rows"]} == FIGURES
    assert all(row["value"] > 0 for row in found["rows"] if row["unit"] != "MB")  # freed memory may be used again
    rows = {row["what"]: row for row in found["rows"]}
    assert rows["rollouts"]["other"] > 0
    if find_spec("trl") is None:
        assert rows["whole GRPO step"]["other"] == "not installed: pip install trl"
    for what in FIGURES:
        assert f"| tiny | {what} |" in done.stdout


@pytest.mark.slow
def test_what_there_is_no_time_for_is_named(tmp_path):
    done = run("gpu.py", "--device", "cpu", "--sizes", "tiny", "--minutes", "0", "--parts", "head,sync")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no time left") == 2
