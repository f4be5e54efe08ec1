"""Curves of one or several runs as a PNG, a panel a metric. matplotlib is imported only when something is drawn."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lightrft_core.errors import UserError
from lightrft_core.metrics_file import read_metrics
from lightrft_core.rundir import RunDir

Points = Sequence[tuple[int, float]]
Axes = Any  # a matplotlib Axes; matplotlib is optional


@dataclass(frozen=True, slots=True)
class Panel:
    """One set of axes: a metric as a line, and its held-out twin as points."""

    title: str
    metric: str
    evaluation: str | None = None


PANELS: Final = (
    Panel("reward (mean)", "reward/mean", "eval/reward"),
    Panel("accuracy", "accuracy", "eval/accuracy"),
    Panel("completion length (tokens)", "completion/length", "eval/completion/length"),
    Panel("truncated completions (share)", "completion/truncated_fraction"),
    Panel("groups without spread (share)", "group/zero_spread_fraction"),
    Panel("entropy (nats per token)", "train/entropy"),
    Panel("KL to the reference (nats per token)", "train/kl"),
    Panel("clipped tokens (share)", "train/clip_fraction"),
    Panel("gradient norm", "train/grad_norm"),
    Panel("learning rate", "train/lr"),
    Panel("engine-trainer gap (mean, nats per token)", "gap/logprob_mean_abs"),
    Panel("engine-trainer gap (99th percentile, nats)", "gap/logprob_p99_abs"),
    Panel("tokens per second", "throughput/tokens_per_s"),
)
_COLUMNS: Final = 3
_SMOOTH_FROM: Final = 30
_MAX_MARKED: Final = 25
_LINES: Final = ("-", "--", "-.", ":")


def plot_run(run_dir: RunDir) -> Path | None:
    """Draw the run's metrics.jsonl to plots/curves.png; None where nothing was logged yet."""
    series = read_metrics(run_dir.metrics)
    return plot_runs({run_dir.name: series}, run_dir.plots / "curves.png") if series else None


def plot_runs(series: Mapping[str, Mapping[str, Points]], path: Path, metrics: Sequence[str] | None = None) -> Path:
    """Draw the runs over each other to `path` (PNG): `metrics`, or those of `PANELS` that exist.

    Raises `UserError` without matplotlib, for metrics that no run has, and where there is nothing to draw.
    """
    panels = _panels(series, metrics)
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = _new_figure(4.6 * columns, 3.0 * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False)
    for place, panel in zip(grid.flat, panels, strict=False):
        _draw(place, panel, series)
    for place in grid.flat[len(panels) :]:
        place.axis("off")
    held_out = any(run.get(panel.evaluation or "") for panel in panels for run in series.values())
    _legend(figure, list(series), has_points=held_out)
    return _save(figure, path)


def plot_bands(curves: Mapping[str, Sequence[Points]], path: Path, *, label: str, level: float | None = None) -> Path:
    """Draw per name the mean of its curves, with a band from the lowest to the highest of them, to `path` (PNG).

    `label` says what the values are; `level` is marked. A step counts where all curves of a name have it. Raises
    `UserError` without matplotlib, and where there is nothing to draw.
    """
    if not any(curves.values()):
        raise UserError("there is nothing to plot: no run was finished.")
    figure = _new_figure(7.2, 4.4)
    axes = figure.subplots()
    for number, (name, several) in enumerate(curves.items()):
        _draw_band(axes, number, name, several)
    if level is not None:
        axes.axhline(level, color="gray", linestyle=":", linewidth=1, label=f"level {level:.3g}")
    _dress(axes, "mean over seeds; the band is from the lowest to the highest", label)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False, handlelength=4)
    return _save(figure, path)


def _draw_band(axes: Axes, number: int, name: str, several: Sequence[Points]) -> None:
    rows = [dict(points) for points in several]
    steps = sorted(set.intersection(*(set(row) for row in rows)))
    columns = [[row[step] for row in rows] for step in steps]
    means = [sum(column) / len(column) for column in columns]
    color, line = f"C{number % 10}", _LINES[number // 10 % len(_LINES)]
    label = f"{name} ({len(rows)} run{'s' if len(rows) > 1 else ''})"
    axes.plot(steps, means, color=color, linestyle=line, label=label, linewidth=1.8, marker="o", markersize=4,
              markeredgecolor="white")  # fmt: skip
    axes.fill_between(steps, list(map(min, columns)), list(map(max, columns)), color=color, alpha=0.15, linewidth=0)


def _new_figure(width: float, height: float) -> Any:  # Any: a matplotlib Figure
    """An empty figure, in inches, without pyplot: no global state, no display. `UserError` without matplotlib."""
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise UserError(
            "plots need matplotlib.", hint="Install it with `pip install 'lightrft-core[plots]'`."
        ) from None
    return importlib.import_module("matplotlib.figure").Figure(figsize=(width, height), dpi=120, layout="constrained")


def _save(figure: Any, path: Path) -> Path:  # Any: a matplotlib Figure
    """Write a figure as PNG, its folder included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def _panels(series: Mapping[str, Mapping[str, Points]], metrics: Sequence[str] | None) -> list[Panel]:
    known = {name for run in series.values() for name, points in run.items() if points}
    if metrics is not None:
        missing = [name for name in metrics if name not in known]
        if missing:
            raise UserError(f"no run has the metric {missing[0]!r}.", hint=f"There are: {', '.join(sorted(known))}.")
        by_metric = {panel.metric: panel for panel in PANELS}
        return [by_metric.get(name, Panel(name, name)) for name in metrics]
    panels = [panel for panel in PANELS if panel.metric in known or panel.evaluation in known]
    if not panels:
        raise UserError("there is nothing to plot: no metrics were logged yet")
    return panels


def _draw(axes: Axes, panel: Panel, series: Mapping[str, Mapping[str, Points]]) -> None:
    for number, run in enumerate(series.values()):
        color = f"C{number % 10}"
        steps, values = _split(run.get(panel.metric, ()))
        if len(values) > _SMOOTH_FROM:
            axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
            axes.plot(steps, _smoothed(values), color=color, linewidth=1.6)
        else:
            axes.plot(steps, values, color=color, linewidth=1.6, marker=".", markersize=4)
        held_steps, held_values = _split(run.get(panel.evaluation or "", ()))
        dashed = "--" if len(held_steps) <= _MAX_MARKED else ""
        axes.plot(held_steps, held_values, color=color, linestyle=dashed or "none", linewidth=0.8, marker="o",
                  markersize=5, markeredgecolor="white")  # fmt: skip
    _dress(axes, panel.title, panel.metric)


def _dress(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step", fontsize=8)
    axes.set_ylabel(label, fontsize=8)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Any, names: Sequence[str], *, has_points: bool) -> None:  # Any: a matplotlib Figure
    lines = importlib.import_module("matplotlib.lines")
    handles = [lines.Line2D([], [], color=f"C{number % 10}", label=name) for number, name in enumerate(names)]
    if has_points:
        handles.append(lines.Line2D([], [], color="gray", linestyle="none", marker="o", label="held-out evaluation"))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 4), fontsize=9, frameon=False)


def _split(points: Points) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _smoothed(values: Sequence[float]) -> list[float]:
    """Mean over a window of a twentieth of the run that ends at each point."""
    width = max(2, len(values) // 20)
    return [sum(values[max(0, end - width) : end]) / min(end, width) for end in range(1, len(values) + 1)]
