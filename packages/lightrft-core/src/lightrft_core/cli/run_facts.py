"""What there is to say about one run, read from its folder alone."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from lightrft_core.checkpoints import Checkpoints
from lightrft_core.metrics_file import Series, read_metrics
from lightrft_core.printable import printable
from lightrft_core.protocols import Json
from lightrft_core.rundir import RunDir
from lightrft_core.trackers.wording import HEALTH, duration, short

if TYPE_CHECKING:
    from rich.table import Table

_LISTED = ("reward/mean", "accuracy", "eval/accuracy")
_TIMES = ("seconds/", "memory/")


def facts_of(run: RunDir) -> dict[str, Json]:
    """One line of the list, as data."""
    status, series = run.read_status(), read_metrics(run.metrics)
    started, now = run.read_manifest().get("started", ""), datetime.now(UTC).isoformat()
    return {
        "name": run.name,
        "path": str(run.path),
        "state": status.state,
        "reason": status.reason,
        "exit_code": status.exit_code,
        "step": last_step(series),
        "started": started,
        "seconds": _between(started, now if status.state == "running" else status.updated),
        "metrics": {name: series[name][-1][1] for name in _LISTED if name in series},
    }


def details_of(run: RunDir) -> dict[str, Json]:
    """Everything that `runs show` prints, as data."""
    manifest, series = run.read_manifest(), read_metrics(run.metrics)
    checkpoints = sorted(path.name for path in run.checkpoints.glob("step_*")) if run.checkpoints.is_dir() else []
    return {
        **facts_of(run),
        "metrics": {name: summary_of(points) for name, points in ordered(series).items()},
        "checkpoints": checkpoints,
        "resumable": Checkpoints(run.checkpoints, keep=1).steps(resumable=True),
        "plots": sorted(str(path) for path in run.plots.glob("*.png")),
        "seed": manifest.get("seed"),
        "formula": manifest.get("formula", {}),
        "versions": manifest.get("versions", {}),
        "plugins": manifest.get("plugins", []),
        "git": manifest.get("git"),
        "data": manifest.get("data", {}),
    }


def summary_of(points: Sequence[tuple[int, float]]) -> dict[str, Json]:
    """First and last value, and the extremes with their steps."""
    low = min(points, key=lambda point: point[1])
    high = max(points, key=lambda point: point[1])
    return {"first": points[0][1], "last": points[-1][1], "min": low[1], "min_step": low[0], "max": high[1],
            "max_step": high[0]}  # fmt: skip


def ordered(series: Series) -> Series:
    """Metrics in the order in which people ask for them; what phases took at the end."""
    known = {name: place for place, (name, _, _) in enumerate(HEALTH)}
    names = sorted(series, key=lambda name: (name.startswith(_TIMES), known.get(name, len(known)), name))
    return {name: series[name] for name in names}


def last_step(series: Series) -> int:
    """The newest step that was logged, 0 before the first."""
    return max((points[-1][0] for points in series.values()), default=0)


def print_runs(runs: Sequence[Mapping[str, Json]]) -> None:
    """The list as a table."""
    table = plain_table("name", "state", "step", *_LISTED, "started", "took")
    for run in runs:
        numbers = [short(run["metrics"][name]) if name in run["metrics"] else "" for name in _LISTED]
        took = duration(run["seconds"]) if run["seconds"] is not None else ""
        started = run["started"][:16].replace("T", " ")
        table.add_row(printable(run["name"]), run["state"], str(run["step"]), *numbers, started, took)
    print_table(table)


def print_details(details: Mapping[str, Json]) -> None:
    """One run, as a page."""
    exit_code = f", exit code {details['exit_code']}" if details["exit_code"] is not None else ""
    print(f"{printable(details['name'])}: {details['state']}{exit_code}")
    if details["reason"]:
        print(f"  {printable(details['reason'])}")
    for label, value in _lines(details):
        print(f"  {label:<12}{printable(value)}")
    if details["metrics"]:
        table = plain_table("metric", "first", "last", "lowest (step)", "highest (step)")
        for name, facts in details["metrics"].items():
            low, high = f"{short(facts['min'])} ({facts['min_step']})", f"{short(facts['max'])} ({facts['max_step']})"
            table.add_row(printable(name), short(facts["first"]), short(facts["last"]), low, high)
        print_table(table)
    if details["resumable"] and details["state"] in ("stopped", "failed", "killed"):
        print(f"go on with  lightrft train --resume {details['path']}")


def _lines(details: Mapping[str, Json]) -> list[tuple[str, str]]:
    formula, git = details["formula"], details["git"] or {}
    used = [f"{kind} {choice['use']}" for kind, choice in formula.items() if isinstance(choice, dict)]
    versions = [f"{name} {version}" for name, version in details["versions"].items() if name != "platform"]
    changed = " (with uncommitted changes)" if git.get("is_changed") else ""
    pairs = [
        ("folder", details["path"]),
        ("step", str(details["step"])),
        ("formula", ", ".join(used)),
        ("checkpoints", ", ".join(details["checkpoints"])),
        ("plots", ", ".join(details["plots"])),
        ("seed", "" if details["seed"] is None else str(details["seed"])),
        ("versions", ", ".join(versions)),
        ("git", f"{git['commit'][:12]}{changed}" if git else ""),
    ]
    return [(label, value) for label, value in pairs if value]


def plain_table(*headings: str) -> "Table":
    """A table without frames whose first column is text and whose others are numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left", overflow="fold", no_wrap=place == 0)
    return table


def print_table(table: "Table") -> None:
    """Print a table of plain text; a pipe gets it as wide as it needs."""
    import sys

    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not sys.stdout.isatty():
        console.width = max(console.width, console.measure(table, options=console.options.update(width=1000)).maximum)
    console.print(table)


def _between(start: str, end: str) -> float | None:
    try:
        return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
    except ValueError:
        return None
