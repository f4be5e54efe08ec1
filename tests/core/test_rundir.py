import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
from datetime import datetime
from pathlib import Path

import pytest
from lightrft_core.errors import UserError
from lightrft_core.metrics_file import metrics_line, read_metrics
from lightrft_core.rundir import RunDir, default_name, truncate_metrics


def test_a_new_run_has_its_folders_and_its_paths_are_where_the_readme_says(tmp_path):
    run = RunDir.create(tmp_path / "runs", "first")
    assert run.path == tmp_path / "runs" / "first"
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "plots"]
    names = [run.run_yaml, run.manifest, run.metrics, run.log, run.rollouts, run.status_file]
    assert [path.name for path in names] == [
        "run.yaml", "manifest.json", "metrics.jsonl", "log.txt", "rollouts.sqlite", "STATUS",
    ]  # fmt: skip
    assert run.name == "first"


def test_an_existing_run_is_never_overwritten_and_both_choices_are_spelled_out(tmp_path):
    RunDir.create(tmp_path, "first").metrics.write_text("precious")
    with pytest.raises(UserError) as error:
        RunDir.create(tmp_path, "first")
    text = str(error.value)
    assert f"lightrft train --resume {tmp_path / 'first'}" in text
    assert "--set run.name=" in text
    assert (tmp_path / "first" / "metrics.jsonl").read_text() == "precious"


def test_a_folder_that_cannot_be_made_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run\.dir: .* cannot be made: Not a directory.*--set run\.dir"):
        RunDir.create(tmp_path / "file", "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_parent_is_the_users_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        RunDir.create(tmp_path, "run")


def test_the_default_name_is_the_recipe_and_the_time():
    now = datetime(2026, 3, 4, 15, 6, 7)
    assert default_name("gsm8k_grpo.yaml", now) == "gsm8k_grpo-0304-150607"
    assert default_name("my run!", now) == "my-run--0304-150607"
    assert default_name("..", now) == "run-0304-150607"
    assert default_name("gsm8k_grpo.yaml", None) == "gsm8k_grpo"


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a run's folder"):
        RunDir.open(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        RunDir.open(tmp_path / "nothing")


def test_a_run_is_found_by_path_or_name_and_a_near_name_is_offered(tmp_path):
    RunDir.create(tmp_path, "otter").write_run_file("run: {}\n")
    assert RunDir.find("otter", tmp_path).name == "otter"
    assert RunDir.find(str(tmp_path / "otter"), Path("elsewhere")).name == "otter"
    with pytest.raises(UserError, match=r"no run 'oter'.*Did you mean 'otter'\?"):
        RunDir.find("oter", tmp_path)


def test_a_folder_with_a_runs_name_does_not_hide_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "otter").mkdir()
    RunDir.create(tmp_path / "runs", "otter").write_run_file("run: {}\n")
    assert RunDir.find("otter").path == tmp_path / "runs/otter"


def test_all_lists_runs_only(tmp_path):
    RunDir.create(tmp_path, "a").write_run_file("run: {}\n")
    (tmp_path / "folder").mkdir()
    assert [run.name for run in RunDir.all(tmp_path)] == ["a"]
    assert RunDir.all(tmp_path / "nothing") == []


def test_the_status_says_how_it_ended(tmp_path):
    run = RunDir.create(tmp_path, "a")
    assert run.read_status().state == "new"
    run.write_status("running")
    assert run.read_status().state == "running"
    run.write_status("stopped", "SIGTERM", 75)
    status = json.loads(run.status_file.read_text())
    assert (status["state"], status["reason"], status["exit_code"]) == ("stopped", "SIGTERM", 75)
    assert status["pid"] == os.getpid()
    assert RunDir.open(run.path).read_status().exit_code == 75


def test_an_unknown_status_is_a_programming_error(tmp_path):
    with pytest.raises(ValueError, match="asleep"):
        RunDir.create(tmp_path, "a").write_status("asleep")


TRAINING = """
    import sys
    from pathlib import Path
    from lightrft_core.rundir import RunDir
    run = RunDir.create(Path(sys.argv[1]), "other")
    run.write_run_file("run: {}")
    run.write_status("running")
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_is_told_from_one_that_runs_and_a_second_trainer_is_refused(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(TRAINING), str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    run = RunDir.open(tmp_path / "other")
    assert run.read_status().state == "running"
    with pytest.raises(UserError, match=f"is being trained by process {process.pid}"):
        run.write_status("running")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert run.read_status().state == "killed"
    run.write_status("running")
    assert run.read_status().state == "running"


def test_a_run_that_begins_removes_what_killed_processes_left_half_written(tmp_path):
    run = RunDir.create(tmp_path, "a")
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    living, foreign = f".run.yaml.{os.getppid()}.tmp", ".notes.tmp"
    for name in (f".metrics.jsonl.{int(gone.stdout)}.tmp", living, foreign):
        (run.path / name).write_text("half")
    run.write_status("running")
    assert {path.name for path in run.path.glob("*.tmp")} == {living, foreign}


def test_no_secret_reaches_any_file(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "planted-secret-value")
    monkeypatch.setenv("TOKENIZER_PATH", "models/tokenizer")
    run = RunDir.create(tmp_path, "a")
    secrets = ["planted-secret-value", "hf_" + "a" * 30, "sk-" + "b" * 30]
    run.write_run_file(
        "".join(f"key{i}: '{secret}'\n" for i, secret in enumerate(secrets)) + "path: models/tokenizer\n"
    )
    run.write_manifest({"command": secrets, "url": "https://me:pass@host/x", "nested": {"api_key": "anything"}})
    run.write_status("failed", f"said {secrets[0]}", 1)
    handler = run.log_handler()
    handler.handle(logging.LogRecord("x", logging.INFO, "f", 1, "token %s", (secrets[0],), None))
    handler.close()
    everything = "".join(path.read_text() for path in run.path.iterdir() if path.is_file())
    for secret in [*secrets, "me:pass", "anything"]:
        assert secret not in everything
    assert "path: models/tokenizer" in everything
    assert run.log.read_text().endswith("token ***\n")


def test_metrics_come_back_as_series_and_a_torn_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        metrics_line(1, {"reward/mean": 0.25, "bad": float("nan"), "seconds/train": 1.5})
        + metrics_line(2, {"reward/mean": 0.5})
        + '{"step": 3, "reward/m'
    )
    assert read_metrics(path) == {"reward/mean": [(1, 0.25), (2, 0.5)], "seconds/train": [(1, 1.5)]}
    assert json.loads(path.read_text().splitlines()[0])["bad"] is None


def test_truncated_metrics_equal_those_of_a_run_that_never_went_further(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [metrics_line(step, {"reward/mean": step / 7, "x": 1e-9}) for step in range(6)]
    path.write_text("".join(lines) + lines[5][:9])
    truncate_metrics(path, 3)
    assert path.read_text() == "".join(lines[:4])
    truncate_metrics(path, -1)
    assert path.read_text() == ""
    truncate_metrics(tmp_path / "none.jsonl", 3)


def test_a_full_disk_while_logging_is_said_once_and_training_goes_on(capfd):
    run = RunDir(Path("/dev"))
    run.log = Path("/dev/full")
    handler = run.log_handler()
    for _ in range(3):
        handler.handle(logging.LogRecord("x", logging.INFO, "f", 1, "text", (), None))
    with contextlib.suppress(OSError):
        handler.close()
    assert capfd.readouterr().err.count("cannot be written; training goes on without it") == 1


def test_a_folder_in_which_nothing_happened_can_be_discarded(tmp_path):
    run = RunDir.create(tmp_path, "early")
    run.write_run_file("algorithm: grpo\n")
    run.write_status("failed", "a bad row", 2)
    run.discard_unused()
    assert not run.path.exists()


def test_a_folder_with_anything_learnt_or_foreign_stays(tmp_path):
    run = RunDir.create(tmp_path, "later")
    (run.path / "notes.txt").write_text("mine")
    run.discard_unused()
    assert (run.path / "notes.txt").read_text() == "mine"
    run.metrics.write_text("{}\n")
    run.write_run_file("algorithm: grpo\n")
    run.discard_unused()
    assert run.run_yaml.exists()
