import importlib
import io
import json
import os
import pty
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightrft_core.data import Group, Prompt, Rollout, StepReport
from lightrft_core.errors import EnvironmentUnfit
from lightrft_core.metrics_file import read_metrics
from lightrft_core.protocols import Setup
from lightrft_core.sections import ModelSection, OptimSection, RunSection, SamplerSection
from lightrft_core.trackers.console import ConsoleConfig, ConsoleTracker, Course, display, sparkline
from lightrft_core.trackers.jsonl import JsonlConfig, JsonlTracker
from lightrft_core.trackers.tensorboard import TensorboardConfig, TensorboardTracker
from lightrft_core.trackers.wandb import WandbConfig, WandbTracker
from lightrft_core.trackers.wording import duration, health, held_out, thousands
from rich.console import Console

METRICS = {
    "reward/mean": 0.4123, "accuracy": 0.375, "completion/length": 214.4, "completion/truncated_fraction": 0.012,
    "group/zero_spread_fraction": 0.25, "train/policy_loss": 1e-9, "train/clip_fraction": 0.0, "train/kl": 0.00312,
    "train/entropy": 1.25, "throughput/tokens_per_s": 98_400.0, "reward/unscored_fraction": 0.0,
}  # fmt: skip


def setup(run_dir, *, rank=0, steps=116):
    world = SimpleNamespace(rank=rank, size=2)
    sections = (RunSection(steps=steps), OptimSection(), SamplerSection(), ModelSection(path="m"))
    return Setup(*sections, run_dir=run_dir, num_optimizer_steps=1, world=world)


def report(step=12, metrics=METRICS, groups=()):
    return StepReport(step=step, metrics=metrics, seconds={"generate": 3.1, "score": 0.2, "train": 1.9}, groups=groups)


def console(tmp_path, capsys, *reports, rank=0, **options):
    now = [0.0]
    tracker = ConsoleTracker(ConsoleConfig(**options), setup(tmp_path, rank=rank), clock=lambda: now[0])
    for item in reports:
        now[0] += 6.0
        tracker.log(item)
    tracker.log_evaluation(12, {"eval/accuracy": 0.5, "eval/num_scored": 256.0})
    tracker.close("done")
    return capsys.readouterr().out


def test_without_a_terminal_a_step_is_one_plain_line(tmp_path, capsys):
    out = console(tmp_path, capsys, report(11), report(12))
    line = next(line for line in out.splitlines() if line.startswith("step 12"))
    assert line == (
        "step 12/116  reward 0.412  accuracy 0.375  length 214  truncated 1.2%  no spread 25.0%  policy_loss 1e-09  "
        "clipped 0.0%  kl 0.00312  entropy 1.250  tok/s 98.4k  generate 3.10s score 0.20s train 1.90s  eta 10m24s"
    )
    assert "\x1b" not in out


def test_an_evaluation_has_its_own_line(tmp_path, capsys):
    assert "evaluation at step 12: accuracy 0.500  of 256" in console(tmp_path, capsys)


def test_that_the_policy_loss_need_not_fall_is_explained_once(tmp_path, capsys):
    out = console(tmp_path, capsys, report(1), report(2))
    assert out.count("policy_loss need not fall: on-policy every ratio is 1") == 1
    assert "near 0" not in console(tmp_path, capsys, report(metrics={"reward/mean": 0.4}))


def test_lines_can_be_fewer(tmp_path, capsys):
    out = console(tmp_path, capsys, *(report(step) for step in range(1, 8)), every=3)
    assert [line.split("/")[0] for line in out.splitlines() if line.startswith("step")] == ["step 3", "step 6"]


def test_other_ranks_are_silent(tmp_path, capsys):
    assert console(tmp_path, capsys, report(), rank=1) == ""
    tracker = JsonlTracker(JsonlConfig(), setup(tmp_path, rank=1))
    tracker.log(report())
    tracker.close("done")
    assert list(tmp_path.iterdir()) == []


def test_unknown_and_missing_metrics_do_no_harm(tmp_path, capsys):
    assert "step 12/116  generate" in console(tmp_path, capsys, report(metrics={"my/own": 3.0}))


LIVE = """
    import sys, logging
    from pathlib import Path
    from types import SimpleNamespace
    sys.path.insert(0, sys.argv[1])
    import test_trackers as t
    from lightrft_core.trackers.console import ConsoleConfig, ConsoleTracker
    tracker = ConsoleTracker(ConsoleConfig(), t.setup(Path(".")))
    groups = [t.hostile_group()]
    tracker.log(t.report(1, groups=groups))
    print("a print of the run", flush=True)
    tracker.log(t.report(2, groups=groups))
    tracker.log_evaluation(2, {"eval/accuracy": 0.5})
    tracker.close("done")
    print("after", flush=True)
"""


def hostile_group():
    texts = ("\x1b]0;owned\x07[bold red]good[/bold red]", "bad\x1b[2J")
    rollouts = [
        Rollout("p", index, (1,), text, (0.0,), "stop", 0, reward=1.0 - index) for index, text in enumerate(texts)
    ]
    return Group(Prompt("p", ()), (1,), rollouts)


def on_a_terminal(code, *arguments):
    """Run Python code with a pseudo terminal as stdout; returns what the terminal received."""
    controller, terminal = pty.openpty()
    environ = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "140", "LINES": "30"}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], stdout=terminal, stderr=subprocess.PIPE, env=environ
    )
    os.close(terminal)
    received = b""
    while True:
        try:
            chunk = os.read(controller, 65536)
        except OSError:
            break
        if not chunk:
            break
        received += chunk
    os.close(controller)
    errors = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 0, errors
    return received.decode()


def test_on_a_terminal_the_display_is_live_and_hostile_completions_are_inert(tmp_path):
    screen = on_a_terminal(LIVE, str(Path(__file__).parent))
    assert "step 2/116" in screen
    assert "reward" in screen
    assert "a print of the run" in screen
    assert "\x1b]0;owned" not in screen
    assert "\\x1b]0;owned\\x07[bold red]good[/bold red]" in screen
    assert "bad\\x1b[2J" in screen
    assert screen.rindex("\x1b[?25h") < screen.rindex("after"), "the cursor is given back"


def test_what_filters_left_of_a_step_is_shown():
    assert ("kept", "43.8%") in health({"reward/mean": 0.9, "filter/kept_fraction": 0.4375})
    assert ("filled", "81.2%") in health({"reward/mean": 0.9, "filter/filled_fraction": 0.8125})
    assert "filled" not in dict(health({"reward/mean": 0.9, "filter/filled_fraction": 1.0}))
    assert "kept" not in dict(health({"reward/mean": 0.9}))


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_progress_line_fits_the_terminal_however_long_the_run(width):
    course = Course(1000, lambda: 0.0)
    for step in range(1, 101):
        course.note(report(step, {"reward/mean": step / 100}))
    console = Console(width=width, file=io.StringIO())
    console.print(display(report(100, {"reward/mean": 1.0}), course, [], console))
    first, second, *_ = console.file.getvalue().splitlines()
    assert first.startswith("step 100/1000")
    assert second.startswith("reward 1.000")


def test_metrics_jsonl_has_a_line_per_step_and_evaluation(tmp_path):
    tracker = JsonlTracker(JsonlConfig(), setup(tmp_path))
    tracker.log_evaluation(0, {"eval/accuracy": 0.25})
    tracker.log(report(1))
    series = read_metrics(tmp_path / "metrics.jsonl")
    assert series["eval/accuracy"] == [(0, 0.25)]
    assert series["reward/mean"] == [(1, 0.4123)]
    assert series["seconds/generate"] == [(1, 3.1)]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1]


def test_lines_that_a_full_disk_refuses_are_written_later(tmp_path, caplog):
    code = """
        import resource, signal, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        import test_trackers as t
        from lightrft_core.trackers.jsonl import JsonlConfig, JsonlTracker
        tracker = JsonlTracker(JsonlConfig(), t.setup(Path(sys.argv[2])))
        tracker.log_evaluation(1, {"x": 1.0})
        resource.setrlimit(resource.RLIMIT_FSIZE, (30, resource.RLIM_INFINITY))
        tracker.log_evaluation(2, {"x": 2.0})
        print((Path(sys.argv[2]) / "metrics.jsonl").read_text(), end="", flush=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        tracker.close("done")
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == '{"step": 1, "x": 1.0}\n'
    assert "metrics.jsonl cannot be written" in done.stderr
    assert read_metrics(tmp_path / "metrics.jsonl") == {"x": [(1, 1.0), (2, 2.0)]}


@pytest.fixture
def without(monkeypatch):
    """Make a package look as if it were not installed."""

    def remove(name):
        def refuse(wanted, *args):
            if wanted.split(".")[0] == name:
                raise ModuleNotFoundError(f"No module named {name!r}")
            return importlib.__import__(wanted, *args)

        monkeypatch.setattr(importlib, "import_module", refuse)

    return remove


@pytest.mark.parametrize(
    ("name", "tracker", "config"),
    [("wandb", WandbTracker, WandbConfig()), ("tensorboard", TensorboardTracker, TensorboardConfig())],
)
def test_a_missing_package_names_the_extra_to_install(tmp_path, without, name, tracker, config):
    without(name)
    with pytest.raises(EnvironmentUnfit, match=rf"trackers\[{name}\].*pip install 'lightrft-core\[{name}\]'"):
        tracker(config, setup(tmp_path))


def test_wandb_online_without_a_key_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace())
    with pytest.raises(EnvironmentUnfit, match=r"wandb login.*WANDB_API_KEY.*mode=offline"):
        WandbTracker(WandbConfig(), setup(tmp_path))


def test_disabled_wandb_needs_no_package(tmp_path, without):
    without("wandb")
    tracker = WandbTracker(WandbConfig(mode="disabled"), setup(tmp_path))
    tracker.log(report())
    tracker.close("done")


def test_wandb_offline_writes_into_the_runs_folder_and_keeps_its_id(tmp_path):
    (tmp_path / "run.yaml").write_text("optim: {lr: 0.001}\n")
    for _ in range(2):
        tracker = WandbTracker(WandbConfig(mode="offline"), setup(tmp_path))
        tracker.log(report())
        tracker.close("done")
    run_id = (tmp_path / "wandb_id").read_text()
    names = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]  # offline-run-TIME-ID, or TIME-ID-1
    assert {name.split("-")[3] for name in names} == {run_id}


def test_tensorboard_events_can_be_read_back(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = TensorboardTracker(TensorboardConfig(), setup(tmp_path))
    tracker.log(report(1))
    tracker.log_evaluation(1, {"eval/accuracy": 0.5})
    tracker.close("done")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = {tag: [(event.step, float(event.tensor_proto.float_val[0])) for event in events.Tensors(tag)]
             for tag in events.Tags()["tensors"]}  # fmt: skip
    assert found["eval/accuracy"] == [(1, 0.5)]
    assert found["reward/mean"][0][1] == pytest.approx(0.4123)


def test_trackers_import_no_heavy_package():
    code = "import sys, lightrft_core.trackers.console, lightrft_core.trackers.wandb, lightrft_core.plugin; " + (
        "print([name for name in ('torch', 'rich.live', 'wandb', 'matplotlib', 'numpy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59, "59s"), (723, "12m03s"), (13800, "3h50m"), (187200, "2d04h")]
)
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text


def test_numbers_in_words():
    assert thousands(999) == "999"
    assert thousands(98_400) == "98.4k"
    assert health({"reward/unscored_fraction": 0.1}) == [("unscored", "10.0%")]


def test_an_evaluation_in_words_says_each_figure_once():
    metrics = {"eval/score": 0.5, "eval/accuracy": 0.5, "eval/reward": 0.4, "eval/format": 1.0, "eval/num_scored": 9.0,
               "eval/group/zero_spread_fraction": 1.0, "eval/unscored_fraction": 0.0}  # fmt: skip
    assert held_out(metrics) == [("accuracy", "0.500"), ("reward", "0.400"), ("of", "9"), ("format", "1.000")]
    assert held_out({"eval/score": 0.5, "eval/reward": 0.4})[0] == ("score", "0.500")


def test_a_sparkline_goes_from_low_to_high():
    assert sparkline([0, 1, 2, 3]) == "▁▃▆█"
    assert sparkline([1, 1]) == "▁▁"
    assert sparkline([]) == ""
