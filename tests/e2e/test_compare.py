"""`lightrft compare` as a user types it: whole runs, one stopped in the middle and gone on with."""

import json
from pathlib import Path

import pytest

WORDS = ("compare", "tiny.yaml", "--algorithms", "grpo,dr_grpo", "--seeds", "2", "--steps", "2", "--dir", "c")
SIGTERM_AFTER_STEP_1 = f"""
plugins: [{Path(__file__).with_name("signaller.py")}]
callbacks: [{{use: signal_after, step: 1, to_parent: true}}]
"""
RUNS = ["dr_grpo-seed7", "dr_grpo-seed8", "grpo-seed7", "grpo-seed8"]


@pytest.mark.slow
def test_two_algorithms_with_two_seeds_are_stopped_and_gone_on_with(lightrft, tiny_run, tmp_path, read_metrics):
    (tmp_path / "tiny.yaml").write_text(tiny_run + SIGTERM_AFTER_STEP_1)
    assert lightrft(*WORDS).returncode == 75
    assert json.loads((tmp_path / "c/grpo-seed7/STATUS").read_text())["state"] == "stopped"
    assert sorted(path.name for path in (tmp_path / "c").iterdir() if path.is_dir()) == ["grpo-seed7"]

    done = lightrft(*WORDS, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [(row["algorithm"], row["num_done"]) for row in report["algorithms"]] == [("grpo", 2), ("dr_grpo", 2)]
    assert sorted(path.name for path in (tmp_path / "c").iterdir() if path.is_dir()) == RUNS
    assert (tmp_path / "c/comparison.png").exists()
    for name in RUNS:
        assert [line["step"] for line in read_metrics(tmp_path / "c" / name)] == [0, 1, 2, 2], name

    before = {name: (tmp_path / "c" / name / "STATUS").stat().st_mtime_ns for name in RUNS}
    again = lightrft(*WORDS)
    assert again.returncode == 0
    assert "4 of them done before" in again.stderr
    assert [line.split()[:2] for line in again.stdout.splitlines()[1:3]] == [["grpo", "2"], ["dr_grpo", "2"]]
    assert {name: (tmp_path / "c" / name / "STATUS").stat().st_mtime_ns for name in RUNS} == before
