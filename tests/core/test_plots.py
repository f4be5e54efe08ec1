import builtins

import pytest
from lightrft_core.errors import UserError
from lightrft_core.metrics_file import metrics_line
from lightrft_core.plots import plot_bands, plot_run, plot_runs
from lightrft_core.rundir import RunDir

pytest.importorskip("matplotlib")


def run_of(offset, steps=60):
    return {
        "reward/mean": [(step, offset + step / 100) for step in range(1, steps + 1)],
        "accuracy": [(step, offset + step / 120) for step in range(1, steps + 1)],
        "eval/accuracy": [(step, offset + step / 110) for step in range(0, steps + 1, 20)],
        "train/entropy": [(step, 1 / step) for step in range(1, steps + 1)],
    }


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_several_runs_are_drawn_over_each_other(tmp_path):
    path = plot_runs({"otter": run_of(0.1), "heron": run_of(0.3, 40)}, tmp_path / "new" / "curves.png")
    width, height = png_size(path)
    assert width > 1200
    assert height > 300


def test_chosen_metrics_only(tmp_path):
    one = png_size(plot_runs({"a": run_of(0)}, tmp_path / "1.png", metrics=["reward/mean"]))
    two = png_size(plot_runs({"a": run_of(0)}, tmp_path / "2.png", metrics=["reward/mean", "train/entropy"]))
    assert two[0] > one[0]


def test_a_metric_that_nobody_has_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no run has the metric 'rewrd'.*There are: accuracy, eval/accuracy"):
        plot_runs({"a": run_of(0)}, tmp_path / "x.png", metrics=["rewrd"])


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(UserError, match="nothing to plot"):
        plot_runs({"a": {}}, tmp_path / "x.png")


def test_bands_are_drawn_per_name_where_all_its_runs_have_the_step(tmp_path):
    short, long = [(0, 0.1), (10, 0.5)], [(0, 0.2), (10, 0.7), (20, 0.8)]
    one = plot_bands({"a": [short, long], "b": [long]}, tmp_path / "new/one.png", label="score", level=0.5)
    assert png_size(one) == png_size(plot_bands({"a": [long]}, tmp_path / "two.png", label="score"))
    with pytest.raises(UserError, match="nothing to plot: no run was finished"):
        plot_bands({}, tmp_path / "none.png", label="score")


def test_a_run_draws_itself_into_its_plots_folder(tmp_path):
    run = RunDir.create(tmp_path, "a")
    assert plot_run(run) is None
    run.metrics.write_text("".join(metrics_line(step, {"reward/mean": step / 3}) for step in range(4)))
    assert plot_run(run) == run.plots / "curves.png"
    png_size(run.plots / "curves.png")


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr("importlib.import_module", lambda name: refuse(name))
    with pytest.raises(UserError, match=r"pip install 'lightrft-core\[plots\]'"):
        plot_runs({"a": run_of(0)}, tmp_path / "x.png")
