import json
import shutil
import subprocess
import sys

import pytest
import typer
from lightrft_core.checkpoints import Checkpoints
from lightrft_core.cli import runs as runs_module
from lightrft_core.errors import UserError
from lightrft_core.metrics_file import metrics_line
from lightrft_core.rundir import RunDir
from typer.testing import CliRunner

RUN_YAML = """
run: {{name: {name}, seed: 1}}
loss: {{use: clip, clip_high: {clip}}}
filters: {filters}
"""


@pytest.fixture
def app():
    app = typer.Typer()
    app.callback()(lambda: None)
    runs_module.register(app)
    return app


def make(parent, name, *, clip=0.2, rewards=(0.1, 0.4, 0.3), filters="[]", status=("done", "", 0)):
    run = RunDir.create(parent, name)
    run.write_run_file(RUN_YAML.format(name=name, clip=clip, filters=filters))
    run.write_manifest({
        "started": "2026-03-04T05:06:07+00:00", "seed": 1, "versions": {"python": "3.11", "torch": "2.13"},
        "formula": {"normalised_by": "advantage group_norm", "loss": {"use": "clip"}}, "git": None,
    })  # fmt: skip
    run.metrics.write_text(
        "".join(metrics_line(i, {"reward/mean": value, "seconds/train": 1.0}) for i, value in enumerate(rewards, 1))
        + metrics_line(len(rewards), {"eval/accuracy": 0.5})
    )
    run.write_status(*status)
    return run


def call(app, *words):
    result = CliRunner().invoke(app, ["runs", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_list_shows_each_run_with_state_step_and_last_figures(app, tmp_path):
    make(tmp_path, "otter")
    make(tmp_path, "heron", status=("failed", "the disk is full", 1))
    lines = call(app, "list", "--dir", tmp_path).splitlines()
    assert lines[0].split()[:3] == ["name", "state", "step"]
    otter = next(line for line in lines if line.startswith("otter"))
    assert otter.split()[:5] == ["otter", "done", "3", "0.3", "0.5"]
    assert any(line.startswith("heron") and "failed" in line for line in lines)


def test_list_as_json_and_of_nothing(app, tmp_path):
    assert json.loads(call(app, "list", "--dir", tmp_path, "--json")) == []
    assert "no runs in" in call(app, "list", "--dir", tmp_path)
    make(tmp_path, "otter")
    (run,) = json.loads(call(app, "list", "--dir", tmp_path, "--json"))
    assert run["name"] == "otter"
    assert run["state"] == "done"
    assert run["metrics"] == {"reward/mean": 0.3, "eval/accuracy": 0.5}


def test_show_says_how_it_ended_and_how_to_go_on(app, tmp_path):
    run = make(tmp_path, "otter", status=("stopped", "SIGTERM", 75))
    (run.checkpoints / "step_000002").mkdir()
    page = call(app, "show", "otter", "--dir", tmp_path)
    assert "otter: stopped, exit code 75" in page
    assert "SIGTERM" in page
    assert "loss clip" in page
    assert "torch 2.13" in page
    assert "0.4 (2)" in page, "the best reward and its step"
    assert f"lightrft train --resume {run.path}" in page
    shutil.rmtree(run.checkpoints / "step_000002")
    Checkpoints(run.checkpoints, 1).save(2, None, lambda folder: None)
    page = call(app, "show", "otter", "--dir", tmp_path)
    assert "step_000002" in page
    assert "--resume" not in page, "it holds the policy's weights alone"


def test_show_as_json(app, tmp_path):
    make(tmp_path, "otter")
    shown = json.loads(call(app, "show", tmp_path / "otter", "--json"))
    assert shown["metrics"]["reward/mean"] == {
        "first": 0.1, "last": 0.3, "min": 0.1, "min_step": 1, "max": 0.4, "max_step": 2,
    }  # fmt: skip
    assert list(shown["metrics"])[-1] == "seconds/train"


def test_an_unknown_run_is_the_users_error_with_a_near_name(app, tmp_path):
    make(tmp_path, "otter")
    with pytest.raises(UserError, match="Did you mean 'otter'"):
        call(app, "show", "ottr", "--dir", tmp_path)


def test_compare_says_the_differences_in_words(app, tmp_path):
    make(tmp_path, "a")
    make(tmp_path, "b", clip=0.28, filters="[{use: spread, min: 0.1}]", rewards=(0.2, 0.9))
    page = call(app, "compare", "a", "b", "--dir", tmp_path)
    assert "loss.clip_high: 0.2 in a, 0.28 in b" in page
    assert "filters[spread].min: not set in a, 0.1 in b" in page
    assert "run.name" not in page
    assert next(line for line in page.splitlines() if line.startswith("reward/mean")).split()[1:] == ["0.3", "0.9"]
    assert next(line for line in page.splitlines() if line.startswith("steps")).split()[1:] == ["3", "2"]


def test_compare_of_equal_runs_says_so(app, tmp_path):
    make(tmp_path, "a")
    make(tmp_path, "b")
    assert "the run files are the same" in call(app, "compare", "a", "b", "--dir", tmp_path)


def test_compare_as_json_and_as_a_plot(app, tmp_path):
    make(tmp_path, "a")
    make(tmp_path, "b", clip=0.3)
    make(tmp_path, "c")
    compared = json.loads(call(app, "compare", "a", "b", "c", "--dir", tmp_path, "--json", "--metric", "reward/mean"))
    assert compared["runs"] == ["a", "b", "c"]
    assert compared["differences"] == {"loss.clip_high": {"a": 0.2, "b": 0.3, "c": 0.2}}
    assert list(compared["metrics"]["b"]) == ["reward/mean"]
    pytest.importorskip("matplotlib")
    assert "plot" in call(app, "compare", "a", "b", "--dir", tmp_path, "--plot", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


def test_compare_needs_two_and_known_metrics(app, tmp_path):
    make(tmp_path, "a")
    make(tmp_path, "b")
    with pytest.raises(UserError, match="Name two runs or more"):
        call(app, "compare", "a", "--dir", tmp_path)
    with pytest.raises(UserError, match=r"no run has the metric 'foo'.* There are: eval/accuracy, reward/mean"):
        call(app, "compare", "a", "b", "--dir", tmp_path, "--metric", "foo")


def test_runs_with_one_name_in_two_folders_are_told_apart_by_path(app, tmp_path):
    one, two = make(tmp_path / "x", "same"), make(tmp_path / "y", "same", clip=0.5)
    page = call(app, "compare", one.path, two.path)
    assert f"0.2 in {one.path}, 0.5 in {two.path}" in page


def test_a_run_cannot_write_to_the_terminal(app, tmp_path):
    run = make(tmp_path, "otter", status=("failed", "said \x1b[2J[red]", 1))
    run.metrics.write_text(metrics_line(1, {"reward/\x1b[31m[red]x": 1.0}))
    page = call(app, "show", "otter", "--dir", tmp_path)
    assert "\x1b" not in page
    assert "said \\x1b[2J[red]" in page
    assert "reward/\\x1b[31m[red]x" in page


def test_the_commands_load_no_heavy_package(tmp_path):
    make(tmp_path, "a")
    code = (
        "import sys, typer; from lightrft_core.cli import runs; from typer.testing import CliRunner; "
        "app = typer.Typer(); app.callback()(lambda: None); runs.register(app); "
        f"CliRunner().invoke(app, ['runs', 'show', {str(tmp_path / 'a')!r}]); "
        "print([n for n in ('torch', 'numpy', 'matplotlib', 'transformers') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
