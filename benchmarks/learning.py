"""Does every algorithm learn? Each bundle as it is, from the quickstart's start model, within the quickstart's budget.

    python benchmarks/learning.py --json learning.json

An algorithm passes if its held-out accuracy rises by at least 30 points on all but one of its seeds (two of three). The
run file has no section that a bundle sets, so that each bundle's own settings hold; only the learning rate is chosen
per algorithm, from `RATES`. Runs go one after another on one thread, in processes of their own; asked again with the
same --dir, what is done is not repeated.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from lightrft_core.cli.compare import outcome_line
from lightrft_core.comparison import Question, plan
from lightrft_core.comparison_report import Report, report_of
from lightrft_core.plots import plot_bands
from lightrft_core.plugins import Plugins
from lightrft_core.recipe_files import RECIPES
from lightrft_core.trials import Outcome, run_trials

POINTS = 30.0
RUN_FILE = f"""\
# The quickstart without a section that an algorithm sets.
algorithm: grpo
model: {{path: {RECIPES / "quickstart-model"}}}
task: {{use: word_problems, split: train}}
evaluation: {{task: {{use: word_problems, split: test, num: 256}}, every: 10, temperature: 1.0}}
sampler: {{group_size: 8, prompts_per_step: 16, max_new_tokens: 32}}
rewards: [gsm8k]
optim: {{lr: 1.0e-4, warmup_steps: 10, batch_size: 64}}
strategy: {{threads: 1}}
run: {{seed: 0, steps: 40}}
rollouts: {{save: false}}
"""
# Why an algorithm takes another learning rate than the quickstart's 1e-4; the scale of its loss is not GRPO's.
RATES: dict[str, tuple[float, str]] = {}


def names_of(plugins: Plugins, *, with_compatibility: bool) -> list[str]:
    """The offered algorithms; those of other libraries are called `library/algorithm`."""
    names = [offer.descriptor.name for offer in plugins.offers("algorithm")]
    return [name for name in names if with_compatibility or "/" not in name]


def rises(report: Report, algorithm: str) -> list[float]:
    """Points that the held-out accuracy rose by, seed by seed; a run that failed rose by nothing."""
    runs = [outcome for outcome in report.outcomes if outcome.trial.algorithm == algorithm]
    return [100 * (o.points[-1][1] - o.points[0][1]) if o.is_done else 0.0 for o in runs]


def figures(report: Report) -> list[dict[str, Any]]:  # Any: JSON
    """A row per algorithm."""
    rows: list[dict[str, Any]] = []
    for row in report.rows:
        risen = rises(report, row.algorithm)
        rows.append({
            "algorithm": row.algorithm,
            "lr": RATES.get(row.algorithm, (1e-4, ""))[0],
            "start": row.first.mean if row.first else None,
            "end": row.last.mean if row.last else None,
            "rises": risen,
            "seconds": row.seconds.mean if row.seconds else None,
            "passes": sum(rise >= POINTS for rise in risen) >= max(1, len(risen) - 1),
        })  # fmt: skip
    return rows


def show(rows: list[dict[str, Any]]) -> None:  # Any: JSON
    """As a table in Markdown."""
    print("| algorithm | lr | start | end | rise in points, seed by seed | seconds | |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        start, end = (f"{row[key]:.3f}" if row[key] is not None else "-" for key in ("start", "end"))
        risen = ", ".join(f"{rise:+.0f}" for rise in row["rises"])
        seconds = f"{row['seconds']:.0f}" if row["seconds"] is not None else "-"
        verdict = "learns" if row["passes"] else "**fails**"
        print(f"| `{row['algorithm']}` | {row['lr']:g} | {start} | {end} | {risen} | {seconds} | {verdict} |")


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the runs.")] = Path("runs/learning"),
    algorithms: Annotated[str | None, typer.Option(help="Only these, with commas.")] = None,
    compatibility: Annotated[bool, typer.Option(help="Also the bundles of other libraries.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 3,
    plot: Annotated[Path | None, typer.Option(help="Draw the mean curves here.")] = None,
) -> None:
    """Run them all; exit code 1 where one does not learn."""
    os.environ["OMP_NUM_THREADS"] = "1"
    plugins = Plugins.load()
    names = algorithms.split(",") if algorithms else names_of(plugins, with_compatibility=compatibility)
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "learning.yaml"
    source.write_text(RUN_FILE)
    own = {name: [f"optim.lr={rate}"] for name, (rate, _) in RATES.items()}
    planned = plan(Question(source=str(source), algorithms=names, seeds=seeds, folder=folder, own_sets=own), plugins)

    def tell(outcome: Outcome) -> None:
        print(outcome_line(outcome), flush=True)

    report = report_of(run_trials(planned.trials, tell))
    rows = figures(report)
    show(rows)
    if plot is not None:
        plot_bands(report.curves(), plot, label="held-out accuracy")
    if json_file is not None:
        json_file.write_text(json.dumps({"rows": rows, "comparison": report.as_data()}, indent=1))
    raise typer.Exit(int(not all(row["passes"] for row in rows) or len(report.outcomes) < len(planned.trials)))


if __name__ == "__main__":
    typer.run(main)
