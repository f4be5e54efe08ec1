"""The embedded decoder is measured against a real vLLM, in the environment that has it."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_rollouts_are_measured_against_vllm(tmp_path):
    out = tmp_path / "vllm.json"
    words = ("--scenario", "a", "--groups", "2", "--repeats", "1", "--json", str(out))
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/rollout_vllm.py", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(out.read_text())["rows"]
    assert [row["engine"] for row in rows] == ["vllm", "embedded"]
    assert all(row["tokens_per_cpu_s"] > 0 for row in rows)
