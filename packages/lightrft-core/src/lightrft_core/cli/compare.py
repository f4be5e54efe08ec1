"""`lightrft compare RUN.yaml --algorithms grpo,gspo --seeds 3`: which of them learns better on this task."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lightrft_core.comparison import Plan, Question
    from lightrft_core.comparison_report import Report
    from lightrft_core.trials import Outcome

EPILOG = (
    "Asked again, it goes on where it was: finished runs are kept, stopped ones resumed, algorithms and seeds may be "
    "added. Try: lightrft compare quickstart --algorithms grpo,dr_grpo --seeds 2 --steps 10"
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare", epilog=EPILOG)(compare)


def compare(
    run: Annotated[str, typer.Argument(metavar="RUN.yaml | RECIPE", help="What all runs have in common.")],
    algorithms: Annotated[str, typer.Option("--algorithms", metavar="A,B", help="Their names, with commas.")],
    seeds: Annotated[
        str, typer.Option("--seeds", help="How many seeds, from the run file's own on; or a list: 1,5,9.")
    ] = "3",
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps of each run.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override one key: optim.lr=1e-5; for one algorithm: gspo:optim.lr=1e-4"),
    ] = None,
    keep_file: Annotated[
        bool, typer.Option("--keep-file", help="Let the run file override the algorithms' own settings.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Folder of the runs; by default runs/compare-NAME.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="What to compare; by default the held-out score, else the training reward."),
    ] = None,
    level: Annotated[
        float | None, typer.Option("--level", help="Count the steps to this score; by default half of the best rise.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Where to draw; by default DIR/comparison.png.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train with each algorithm and seed, one run after another; then a table and a plot with intervals."""
    import sys

    from lightrft_core.comparison import plan
    from lightrft_core.comparison_report import report_of
    from lightrft_core.trials import run_trials

    names = [name.strip() for name in algorithms.split(",") if name.strip()]
    where = folder or Path("runs") / f"compare-{Path(run).stem}"
    question = _question(run, names, seeds, where, sets or [], steps, keep_file=keep_file)
    planned = plan(question)
    _announce(question, planned)

    def tell(outcome: "Outcome") -> None:
        print(outcome_line(outcome), file=sys.stderr, flush=True)

    report = report_of(run_trials(planned.trials, tell, metric), level)
    drawn = _draw(report, plot or where / "comparison.png", is_asked=plot is not None)
    _print(report, drawn, as_json=as_json)
    _finish(report, len(planned.trials))


def _question(
    run: str, names: Sequence[str], seeds: str, folder: Path, sets: Sequence[str], steps: int | None, *, keep_file: bool
) -> "Question":
    from lightrft_core import launch
    from lightrft_core.comparison import Question

    own: dict[str, list[str]] = {name: [] for name in names}
    shared = [f"run.steps={steps}"] if steps is not None else []
    for text in sets:
        name = next((name for name in names if text.startswith(f"{name}:")), None)
        if name is None:
            shared.append(text)
        else:
            own[name].append(text.removeprefix(f"{name}:"))
    return Question(
        source=run,
        algorithms=names,
        seeds=_seeds(seeds),
        folder=folder,
        sets=shared,
        own_sets=own,
        keeps_file=keep_file,
        num_ranks=launch.num_gpus() or 1,
    )


def _seeds(text: str) -> "int | list[int]":
    from lightrft_core.errors import UserError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or text == "0":
        hint = "Give how many (3), or the seeds themselves (1,5,9)."
        raise UserError(f"{text!r} is neither a number of seeds nor a list.", where="--seeds", hint=hint)
    numbers = [int(part) for part in parts]
    return numbers[0] if len(numbers) == 1 else list(dict.fromkeys(numbers))


def _announce(question: "Question", planned: "Plan") -> None:
    import sys

    num_done = sum(trial.run_dir.read_status().state == "done" for trial in planned.trials)
    seeds = len({trial.seed for trial in planned.trials})
    kept = f", {num_done} of them done before" if num_done else ""
    names, runs = len(question.algorithms), len(planned.trials)
    count = f"{_many(names, 'algorithm')} x {_many(seeds, 'seed')} = {_many(runs, 'run')}"
    print(f"{count} in {question.folder}/{kept}", file=sys.stderr, flush=True)
    if planned.given_way:
        keys = ", ".join(planned.given_way)
        what = f"each algorithm runs with its own settings; from {question.source} these give way: {keys}"
        print(f"{what} (not with --keep-file)", file=sys.stderr, flush=True)


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def outcome_line(outcome: "Outcome") -> str:
    """One finished run: `grpo seed 1    done  0.379 -> 0.867  best 0.871 at step 30  18s`."""
    from lightrft_core.printable import printable
    from lightrft_core.trackers.wording import duration

    trial = outcome.trial
    head = f"{trial.algorithm} seed {trial.seed}".ljust(28) + f" {outcome.state:<8}"
    if outcome.state != "done":
        return f"{head} {printable(outcome.reason)}  (its output: {trial.output})"
    step, best = outcome.best
    first, last = outcome.points[0][1], outcome.points[-1][1]
    return f"{head} {first:.3f} -> {last:.3f}  best {best:.3f} at step {step}  {duration(outcome.seconds)}"


def _draw(report: "Report", path: Path, *, is_asked: bool) -> Path | None:
    """Draw what was done; without matplotlib only a plot that was asked for is an error."""
    import sys

    from lightrft_core.errors import UserError
    from lightrft_core.plots import plot_bands

    curves = report.curves()
    if not curves:
        return None
    try:
        return plot_bands(curves, path, label=report.metric, level=report.level)
    except UserError as error:
        if is_asked:
            raise
        print(f"no plot: {error}", file=sys.stderr)
        return None


def _print(report: "Report", drawn: Path | None, *, as_json: bool) -> None:
    import json

    if as_json:
        print(json.dumps({**report.as_data(), "plot": str(drawn) if drawn else None}, indent=2))
        return
    print_report(report)
    if drawn is not None:
        print(f"plot  {drawn}")


def print_report(report: "Report") -> None:
    """The table: a row an algorithm, means over seeds with their 95% intervals."""
    from lightrft_core.cli.run_facts import plain_table, print_table

    level = "level" if report.level is None else f"{report.level:.3g}"
    table = plain_table("algorithm", "runs", "first", "last", "best", f"steps to {level}", "seconds")
    for row in report.rows:
        scores = [found.written() if found is not None else "-" for found in (row.first, row.last, row.best)]
        some = f" ({row.num_reached} of {row.num_done})" if row.num_reached < row.num_done else ""
        steps = f"{row.steps_to_level.written(0)}{some}" if row.steps_to_level is not None else "never"
        runs = str(row.num_done) if row.num_done == row.num_runs else f"{row.num_done} of {row.num_runs}"
        seconds = f"{row.seconds.mean:.0f}" if row.seconds is not None else "-"
        table.add_row(row.algorithm, runs, *scores, steps if row.num_done else "-", seconds)
    print_table(table)
    if any(row.num_done for row in report.rows):
        print(f"{report.metric}: mean over seeds ± 95% interval (Student's t); seconds are those inside steps")


def _finish(report: "Report", num_trials: int) -> None:
    """Exit code 1 where a run failed, 75 where some are still to be done."""
    from lightrft_core.errors import RunFailed, StoppedEarly

    if report.num_failed:
        raise RunFailed(f"{report.num_failed} of {num_trials} runs failed.", hint="The same command tries them again.")
    if len(report.outcomes) < num_trials or any(not outcome.is_done for outcome in report.outcomes):
        raise StoppedEarly("stopped before all runs were done.", hint="The same command goes on from here.")
