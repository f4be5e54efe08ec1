"""The benchmark scripts start, and the smallest of them measures something."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def run(script, *words):
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("script", ["rollout.py", "decode_floor.py", "step.py", "learning.py", "train.py", "head.py"])
def test_it_explains_its_options(script):
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout


@pytest.mark.slow
def test_rollouts_are_measured_against_generate(tmp_path):
    out = tmp_path / "rollout.json"
    done = run("rollout.py", "--scenario", "a", "--threads", "1", "--groups", "1", "--repeats", "1", "--json", str(out))
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [row["engine"] for row in rows] == ["generate", "embedded"]
    assert all(row["tokens"] == 8 * 32 for row in rows)


@pytest.mark.slow
def test_decode_steps_are_measured_against_their_floor(tmp_path):
    out = tmp_path / "rollout.json"
    done = run("rollout.py", "--scenario", "", "--floor", "2,16", "--json", str(out))
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["steps"]
    assert [(row["batch"], row["prompt"]) for row in rows] == [(2, 16), (2, 128), (16, 16), (16, 128)]
    for row in rows:
        assert row["fp32/floor"] == pytest.approx(row["fp32_ms"] / row["floor_ms"])
        assert 1 < row["fp32/floor"] < 4


@pytest.mark.slow
def test_the_fused_head_is_measured_against_the_naive_one(tmp_path):
    out = tmp_path / "head.json"
    words = ("--tokens", "512", "--completion", "64", "--vocabulary", "300000", "--widths", "16", "--numbers", "fp32")
    done = run("head.py", *words, "--entropy", "trained", "--threads", "1", "--repeats", "1", "--json", str(out))
    assert done.returncode == 0, done.stderr
    assert "| fp32 | 16 | 512 | trained | 1 | step |" in done.stdout
    (row,) = json.loads(out.read_text())["rows"]
    assert row["naive_wall_s"] > 0
    assert row["fused_mb"] < 0.3 * row["naive_mb"]
    assert row["step_mb"] < 0.3 * row["naive_mb"]


@pytest.mark.slow
def test_cuts_of_a_batch_have_one_gradient_and_strategies_are_timed(tmp_path):
    out = tmp_path / "train.json"
    words = ("--tiny", "--groups", "2", "--repeats", "1", "--parts", "layouts,ranks", "--json", str(out))
    done = run("train.py", *words)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert max(row["gradient_off_by"] for row in found["layouts"]) < 1e-5
    assert [row["strategy"] for row in found["ranks"]][:3] == ["single", "ddp", "fsdp2"]
