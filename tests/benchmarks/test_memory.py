"""`lightrft estimate` against the peaks of real runs."""

import json

import pytest

from tests.benchmarks.test_scripts import run

ALLOWED = 0.15


def test_it_explains_its_options():
    done = run("memory.py", "--help")
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout


@pytest.mark.slow
def test_estimates_are_within_15_percent_of_measured_peaks(tmp_path):
    out = tmp_path / "memory.json"
    done = run("memory.py", "--sizes", "5M", "--json", str(out))
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [(row["scenario"], row["ranks"]) for row in rows] == [("single", 1), ("fsdp2", 2)]
    for row in rows:
        assert row["estimate"] == pytest.approx(row["measured"], rel=ALLOWED), row
