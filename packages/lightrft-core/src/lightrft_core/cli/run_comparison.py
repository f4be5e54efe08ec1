"""Runs side by side: where their run files differ, in words, and their metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightrft_core.cli.run_facts import ordered, plain_table, print_table, summary_of
from lightrft_core.errors import UserError
from lightrft_core.flat_keys import flat_run_file
from lightrft_core.metrics_file import Series, read_metrics
from lightrft_core.printable import printable
from lightrft_core.protocols import Json
from lightrft_core.rundir import RunDir
from lightrft_core.trackers.wording import short

_ABSENT = "not set"
_EXPECTED_TO_DIFFER = frozenset(("run.name",))


@dataclass(frozen=True)
class Comparison:
    """Names, differing keys with each run's value, and each run's metrics."""

    names: tuple[str, ...]
    differences: Mapping[str, Mapping[str, Json]]
    series: Mapping[str, Series]

    def as_data(self) -> dict[str, Json]:
        """All of it, as JSON."""
        metrics = {
            name: {metric: summary_of(points) for metric, points in ordered(series).items()}
            for name, series in self.series.items()
        }
        return {"runs": list(self.names), "differences": self.differences, "metrics": metrics}

    def sentences(self) -> list[str]:
        """Each difference in words."""
        return [
            f"{key}: " + ", ".join(f"{_words(value)} in {name}" for name, value in values.items())
            for key, values in self.differences.items()
        ]


def comparison_of(runs: Sequence[RunDir], metrics: Sequence[str] | None = None) -> Comparison:
    """Compare the runs, by all metrics or those named. `UserError` for a metric that none has."""
    names = _distinct(runs)
    files = {name: flat_run_file(run) for name, run in zip(names, runs, strict=True)}
    keys = sorted({key for file in files.values() for key in file} - _EXPECTED_TO_DIFFER)
    values = {key: {name: file.get(key, _ABSENT) for name, file in files.items()} for key in keys}
    differences = {key: row for key, row in values.items() if any(v != row[names[0]] for v in row.values())}
    series = {name: read_metrics(run.metrics) for name, run in zip(names, runs, strict=True)}
    if metrics is not None:
        known = {metric for run in series.values() for metric in run}
        for metric in metrics:
            if metric not in known:
                raise UserError(f"no run has the metric {metric!r}.", hint=f"There are: {', '.join(sorted(known))}.")
        series = {name: {m: run[m] for m in metrics if m in run} for name, run in series.items()}
    return Comparison(names, differences, series)


def print_comparison(comparison: Comparison) -> None:
    """Differences first, then metrics: the last value of each run."""
    if comparison.differences:
        print("the run files differ in")
        for sentence in comparison.sentences():
            print(f"  {printable(sentence)}")
    else:
        print("the run files are the same")
    table = plain_table("last value", *(printable(name) for name in comparison.names))
    merged: Series = {metric: [] for series in comparison.series.values() for metric in series}
    for metric in ordered(merged):
        cells = [series[metric][-1][1] if metric in series else None for series in comparison.series.values()]
        table.add_row(printable(metric), *("-" if value is None else short(value) for value in cells))
    steps = [max((points[-1][0] for points in series.values()), default=0) for series in comparison.series.values()]
    table.add_row("steps", *map(str, steps))
    print_table(table)


def _distinct(runs: Sequence[RunDir]) -> tuple[str, ...]:
    """Names of the runs; paths where two have the same name."""
    names = tuple(run.name for run in runs)
    return names if len(set(names)) == len(names) else tuple(str(run.path) for run in runs)


def _words(value: Json) -> str:
    return "none" if value is None else str(value)
