"""What `lightrft train` finds or makes before anything trains: a new run, or under `run.resume` the one of its name."""

import logging
import subprocess
import sys
import textwrap
import threading

import pytest
from lightrft_core.checkpoints import Checkpoints
from lightrft_core.cli.train import prepare, split_words
from lightrft_core.errors import UserError
from lightrft_core.rundir import RunDir


@pytest.fixture
def prepared(run_folder):
    """`prepare` for a command line; by default for one rank, in earnest."""

    def call(*words, sets=(), make=True, ranks=1):
        run, extra = split_words(words)
        return prepare(run, sets, extra, None, ranks=ranks, make=make)

    return call


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "words", [("run.yaml", "--load_checkpoint"), ("--load_checkpoint", "run.yaml"), ("run.yaml", "run.resume=true")]
)
def test_the_same_command_finds_its_run_again_by_the_run_files_name(prepared, run_folder, words):
    first = prepared(*words)
    before = files(run_folder / "runs")
    again = prepared(*words)
    assert first.run_dir.path == again.run_dir.path == run_folder / "runs/run"
    assert (first.is_resumed, again.is_resumed) == (True, True)
    assert files(run_folder / "runs") == before


@pytest.mark.parametrize(("words", "name"), [(("quickstart",), "quickstart"), (("run.yaml", "run.name=mine"), "mine")])
def test_a_recipe_or_a_name_names_it_too(prepared, words, name):
    assert prepared(*words, "--load_checkpoint", make=False).run_dir.name == name


def test_flags_alone_are_called_run(prepared):
    words = ("--pretrain", "./model", "--prompt_data", "./train.jsonl", "--load_checkpoint")
    assert prepared(*words, sets=["rewards=[exact]"], make=False).run_dir.name == "run"


def test_without_it_a_run_of_the_name_is_never_touched(prepared):
    assert not prepared("run.yaml", "run.name=one").is_resumed
    with pytest.raises(UserError, match=r"run\.name: the run folder .* exists already and is never overwritten"):
        prepared("run.yaml", "run.name=one")
    assert prepared("run.yaml", make=False).run_dir.name.startswith("run-")


def test_a_changed_run_file_holds_from_there_on_and_is_noted(prepared, run_folder):
    run_dir = prepared("run.yaml", "--load_checkpoint").run_dir
    run_dir.stop_file.write_text("SIGTERM")
    again = prepared("run.yaml", "--load_checkpoint", sets=["checkpoint.keep=9"])
    assert again.run_file.checkpoint.keep == 9
    assert "keep: 9" in run_dir.run_yaml.read_text()
    assert run_dir.read_manifest()["changed"] == {"checkpoint.keep": [3, 9]}
    assert run_dir.read_manifest()["origins"]["checkpoint.keep"] == "--set"
    assert not run_dir.stop_file.exists()


SETTINGS = (
    "which its numbers depend on: loss.clip_high 0.2 -> 0.28. It goes on with the new ones; if you mean another run"
)


@pytest.mark.parametrize("make", [True, False])
def test_another_run_file_of_that_name_is_warned_of_what_changes_in_the_numbers(prepared, run_folder, caplog, make):
    path = prepared("run.yaml", "run.name=one", "--load_checkpoint").run_dir.path
    (run_folder / "other.yaml").write_text((run_folder / "run.yaml").read_text() + "loss: {clip_high: 0.28}\n")
    words = ("other.yaml", "run.name=one", "--load_checkpoint", "checkpoint.keep=9", "run.steps=9")
    prepared(*words, make=make)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith(f"{path} had other settings, {SETTINGS}")
    assert "keep" not in warning
    caplog.clear()
    prepared(*words, make=make)
    assert bool(caplog.text) is not make  # by then they are the run's own, unless nothing was made


def test_resume_with_other_settings_is_warned_of_them_too(prepared, caplog):
    path = prepared("run.yaml", "run.name=one").run_dir.path
    prepare(None, ["checkpoint.keep=9"], [], "one", ranks=1, make=True)
    assert caplog.text == ""
    prepare(None, ["loss.clip_high=0.28"], [], "one", ranks=1, make=True)
    assert f"{path} had other settings, {SETTINGS}" in caplog.text


def test_a_reward_that_another_run_file_leaves_out_is_gone_for_the_ranks_too(prepared, run_folder):
    run_dir = prepared("run.yaml", "--load_checkpoint", sets=["rewards=[exact, {use: exact, name: two}]"]).run_dir
    prepared("run.yaml", "--load_checkpoint")
    assert "name: two" not in run_dir.run_yaml.read_text()


def test_what_cannot_change_is_refused_and_nothing_is_written(prepared, run_folder):
    run_dir = prepared("run.yaml", "--load_checkpoint").run_dir
    before = files(run_dir.path)
    with pytest.raises(UserError, match=r"run\.seed: a run that goes on keeps its value, which is 42"):
        prepared("run.yaml", "--load_checkpoint", "--seed", "7")
    checkpoints = Checkpoints(run_dir.checkpoints, 9)
    checkpoints.save(1, None, lambda folder: None)
    with pytest.raises(UserError, match="holds the policy's weights alone"):
        prepared("run.yaml", "--load_checkpoint")
    assert {name: text for name, text in files(run_dir.path).items() if "step_" not in name} == before


def test_a_run_that_trains_is_left_alone(prepared, run_folder):
    run_dir = prepared("run.yaml", "--load_checkpoint").run_dir
    holder = "import sys; from lightrft_core.rundir import RunDir; from pathlib import Path; "
    holder += "RunDir(Path(sys.argv[1])).write_status('running'); print(flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", holder, run_dir.path]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        run_dir.stop_file.write_text("SIGTERM")
        before = files(run_dir.path)
        with pytest.raises(UserError, match=f"run run is being trained by process {process.pid} on "):
            prepared("run.yaml", "--load_checkpoint", sets=["checkpoint.keep=9"])
        assert files(run_dir.path) == before
        process.stdin.close()
    assert prepared("run.yaml", "--load_checkpoint").is_resumed


def test_a_run_that_was_begun_without_it_goes_on_by_it(prepared):
    run_dir = prepared("run.yaml", "run.name=run").run_dir
    assert prepared("run.yaml", "--load_checkpoint").run_dir.path == run_dir.path
    assert run_dir.read_manifest()["changed"]["run.resume"] == [False, True]


def test_a_folder_that_a_killed_process_left_empty_is_taken_and_one_with_other_files_is_not(prepared, run_folder):
    left = RunDir.create(run_folder / "runs", "run")
    assert prepared("run.yaml", "--load_checkpoint").run_dir.path == left.path
    (run_folder / "runs/other").mkdir()
    (run_folder / "runs/other/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already and is never overwritten"):
        prepared("run.yaml", "--load_checkpoint", "run.name=other")


@pytest.mark.parametrize("name", [".run.yaml.4194304.tmp", ".manifest.json.1.tmp"])
def test_a_file_that_a_killed_process_never_gave_its_name_is_no_run(prepared, run_folder, name):
    left = RunDir.create(run_folder / "runs", "run")
    (left.path / name).write_text("run: {res")
    found = prepared("run.yaml", "--load_checkpoint")
    assert (found.run_dir.path, found.run_dir.run_yaml.is_file()) == (left.path, True)
    (left.checkpoints / "notes.txt").write_text("mine")
    left.run_yaml.unlink()
    with pytest.raises(UserError, match="exists already and is never overwritten"):
        prepared("run.yaml", "--load_checkpoint")


KILLED = """
    import os, shutil, signal, sys
    from pathlib import Path
    from lightrft_core.cli.train import prepare

    def make():
        return prepare("run.yaml", ["run.resume=true"], [], None, ranks=1, make=True).run_dir

    def discard():
        make().discard_unused()

    def killed(work, point):
        pid, calls = os.fork(), 0
        if pid:
            return os.waitpid(pid, 0)[1] == signal.SIGKILL
        def counted(function):
            def wrapper(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)
            return wrapper
        for name in ("mkdir", "fsync", "replace", "rename", "unlink", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))
        work()
        os._exit(0)

    work, point = {"make": make, "discard": discard}[sys.argv[1]], 1
    while killed(work, point):
        assert make().run_yaml.is_file(), point
        shutil.rmtree("runs")
        point += 1
    print(point)
"""


@pytest.mark.parametrize(("work", "num_points"), [("make", 10), ("discard", 18)])
def test_killed_at_any_system_call_the_same_command_starts_in_its_folder(run_folder, work, num_points):
    words = [sys.executable, "-c", textwrap.dedent(KILLED), work]
    done = subprocess.run(words, cwd=run_folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > num_points


def test_the_run_it_made_is_resumed_by_name_too(prepared, run_folder):
    run_dir = prepared("run.yaml", "--load_checkpoint").run_dir
    before = files(run_dir.path)
    found = prepare(None, [], [], "run", ranks=1, make=True)
    assert (found.run_dir.path, found.is_resumed, found.run_file.run.resume) == (run_dir.path, True, True)
    assert files(run_dir.path) == before


def test_other_ranks_decide_alike_and_write_nothing(prepared, run_folder, monkeypatch):
    prepared("run.yaml", "--load_checkpoint", sets=["optim.lr=1e-5"])
    before = files(run_folder)
    monkeypatch.setenv("RANK", "1")
    found = prepared("run.yaml", "--load_checkpoint", ranks=2)
    assert (found.is_resumed, found.run_dir.path) == (True, run_folder / "runs/run")
    assert files(run_folder) == before


@pytest.mark.parametrize("words", [("--load_checkpoint",), ("run.name=run",)])
def test_other_ranks_touch_no_folder_that_rank_0_has_not_made(prepared, run_folder, monkeypatch, words):
    folder = run_folder / "runs/run"
    seen = []

    def make():
        seen.append(folder.exists())
        RunDir.create(run_folder / "runs", "run").write_run_file("")

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    timer = threading.Timer(0.5, make)
    timer.start()
    found = prepared("run.yaml", *words, ranks=2)
    timer.join()
    assert (found.run_dir.path, seen) == (folder, [False])
    assert found.is_resumed is ("--load_checkpoint" in words)


def test_a_folder_that_a_machine_does_not_see_is_told(run_folder):
    with pytest.raises(
        UserError, match=r"run\.dir: .*/runs/far has not appeared on .* in 0\.1 seconds; rank 0 makes it"
    ):
        RunDir(run_folder / "runs/far").await_run(seconds=0.1)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_ranks_of_a_launcher_need_a_name_that_all_of_them_know(prepared, run_folder, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"run\.name: the ranks that a launcher starts must agree on the run's folder"):
        prepared("run.yaml", ranks=2)
    assert not (run_folder / "runs").exists()
    assert prepared("run.yaml", ranks=2, make=False).run_dir.name.startswith("run-")
