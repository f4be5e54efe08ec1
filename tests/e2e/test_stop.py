"""Stopping early and well: signals, the time limit, a full disk. What was done is kept, and how to go on is said."""

from pathlib import Path

import pytest
from lightrft_core.checkpoints import Checkpoints
from lightrft_core.rundir import RunDir

PARTS = f"""
plugins: [{Path(__file__).with_name("signaller.py")}]
filters: [{{use: signal_within, step: 3}}]
callbacks: [{{use: signal_after, step: 3}}]
"""


@pytest.fixture
def run_file(tmp_path, tiny_run):
    """The tiny run with both parts in it; they send nothing where a file `sent` exists."""
    path = tmp_path / "run.yaml"
    path.write_text(tiny_run.replace("every: 1, keep: 2", "keep: 2") + PARTS)
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, forked_in, tiny_run):
    """The same run without a signal."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "sent").touch()
    (folder / "run.yaml").write_text(tiny_run.replace("every: 1, keep: 2", "keep: 2") + PARTS)
    done = forked_in(folder)("train", "run.yaml")
    assert done.returncode == 0, done.stderr
    return folder / "runs/tiny"


@pytest.mark.parametrize(
    ("silenced", "step_saved"),
    [pytest.param("filters", 3, id="between_two_steps"), pytest.param("callbacks", 2, id="in_the_middle_of_a_step")],
)
def test_sigterm_saves_and_says_how_to_go_on_and_the_resumed_run_equals_an_undisturbed_one(
    forked, run_file, tmp_path, run_facts, undisturbed, silenced, step_saved
):
    run = tmp_path / "runs/tiny"
    stopped = forked("train", "run.yaml", "--set", f"{silenced}[0].step=99")
    assert stopped.returncode == 75, stopped.stderr
    assert "SIGTERM: finishing this phase, then saving; a second signal ends at once" in stopped.stderr
    assert f"stopped after step {step_saved} (SIGTERM)" in stopped.stderr
    assert f"lightrft train --resume {run}" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert Checkpoints(run / "checkpoints", 2).steps() == [step_saved]
    assert (RunDir(run).read_status().state, RunDir(run).read_status().exit_code) == ("stopped", 75)
    resumed = forked("train", "--resume", "tiny")
    assert resumed.returncode == 0, resumed.stderr
    assert f"(step {step_saved} of 4)" in resumed.stderr
    assert run_facts(run) == run_facts(undisturbed)


def test_a_second_signal_ends_at_once_and_saves_nothing(forked, run_file, tmp_path):
    done = forked("train", "run.yaml", "--set", "filters[0].times=2", "--set", "filters[0].name=SIGINT")
    assert done.returncode == 130, done.stderr
    assert "SIGINT: ending at once; nothing more is saved" in done.stderr
    assert list((tmp_path / "runs/tiny/checkpoints").iterdir()) == []
    assert RunDir(tmp_path / "runs/tiny").read_status().state == "killed"


def test_the_time_limit_saves_before_it_is_over_and_exits_75(forked, tmp_path, tiny_run):
    (tmp_path / "run.yaml").write_text(tiny_run)
    done = forked("train", "run.yaml", "--set", "run.max_time=2s", "--set", "run.steps=100000")
    assert done.returncode == 75, done.stderr
    assert "(time limit)" in done.stderr
    assert f"Go on with: lightrft train --resume {tmp_path}/runs/tiny" in done.stderr
    assert Checkpoints(tmp_path / "runs/tiny/checkpoints", 2).newest() is not None


def test_a_disk_that_is_full_during_a_save_leaves_the_old_checkpoint_intact(lightrft, forked, tmp_path, tiny_run):
    site = tmp_path / "site"
    site.mkdir()
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))"
    (site / "sitecustomize.py").write_text(limit)
    (tmp_path / "run.yaml").write_text(tiny_run)
    first = forked("train", "run.yaml", "--set", "run.steps=2")
    assert first.returncode == 0, first.stderr
    full = lightrft("train", "--resume", "tiny", "--set", "run.steps=4", env={"PYTHONPATH": str(site)})
    assert full.returncode == 1, full.stderr
    assert "the checkpoint could not be written" in full.stderr
    assert "checkpoints/step_000002 is intact" in full.stderr
    assert f"Make room, then go on with `lightrft train --resume {tmp_path}/runs/tiny`" in full.stderr
    assert "Traceback" not in full.stderr
    assert Checkpoints(tmp_path / "runs/tiny/checkpoints", 2).newest().step == 2
    assert sorted(path.name for path in (tmp_path / "runs/tiny/checkpoints").iterdir()) == [
        "step_000001",
        "step_000002",
    ]
