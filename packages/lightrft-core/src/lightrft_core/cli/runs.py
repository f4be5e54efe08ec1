"""`lightrft runs list|show|compare|diff`: what was trained, how it stands, and how runs differ."""

import json
from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Folder = Annotated[Path, typer.Option("--dir", metavar="DIR", help="Folder that holds the runs.")]
RUNS = Path("runs")


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, show, compare and diff runs.")
    group.command("list")(list_runs)
    group.command("show")(show)
    group.command("compare")(compare)
    group.command("diff")(diff)
    app.add_typer(group, name="runs")


def list_runs(folder: Folder = RUNS, as_json: AsJson = False) -> None:
    """The runs in a folder, the newest first."""
    from lightrft_core.cli.run_facts import facts_of, print_runs
    from lightrft_core.rundir import RunDir

    runs = [facts_of(run) for run in RunDir.all(folder)]
    if as_json:
        print(json.dumps(runs, indent=2))
    elif runs:
        print_runs(runs)
    else:
        print(f"no runs in {folder}/. Start one with `lightrft train quickstart`.")


def show(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its name.")],
    folder: Folder = RUNS,
    as_json: AsJson = False,
) -> None:
    """How one run stands, what it ran with, its metrics at the start, at the end and at best."""
    from lightrft_core.cli.run_facts import details_of, print_details
    from lightrft_core.rundir import RunDir

    details = details_of(RunDir.find(run, folder))
    if as_json:
        print(json.dumps(details, indent=2))
    else:
        print_details(details)


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Two runs or more: folders, or names.")],
    folder: Folder = RUNS,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Also draw their curves to this PNG.")
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME", help="Only this metric, such as reward/mean. Repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Where run files differ, and what came of it."""
    from lightrft_core.cli.run_comparison import comparison_of, print_comparison
    from lightrft_core.errors import UserError
    from lightrft_core.rundir import RunDir

    if len(runs) < 2:
        raise UserError("one run cannot be compared.", where="runs compare", hint="Name two runs or more.")
    found = [RunDir.find(run, folder) for run in runs]
    comparison = comparison_of(found, metrics)
    if plot is not None:
        from lightrft_core.plots import plot_runs

        plot_runs(comparison.series, plot, metrics)
    if as_json:
        print(json.dumps(comparison.as_data(), indent=2))
    else:
        print_comparison(comparison)
    if plot is not None and not as_json:
        print(f"plot  {plot}")


def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A run's folder, or its name.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    folder: Folder = RUNS,
    as_json: AsJson = False,
) -> None:
    """Say in words how two runs differ: settings and who set them, formulas, data, seeds, versions."""
    from lightrft_core.cli.run_difference import difference_of, print_difference
    from lightrft_core.rundir import RunDir

    difference = difference_of(RunDir.find(first, folder), RunDir.find(second, folder))
    if as_json:
        print(json.dumps(difference.as_data(), indent=2))
    else:
        print_difference(difference)
