"""`lightrft eval RUN | RUN.yaml | RECIPE`: the run's own evaluation, on a checkpoint or on the untrained model."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lightrft_core.data import Group


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "eval",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        help="Score a run's checkpoint, or any model, on a task.",
    )(evaluate)


def evaluate(
    what: Annotated[str, typer.Argument(metavar="RUN | RUN.yaml | RECIPE")],
    flags: Annotated[list[str] | None, typer.Argument(metavar="FLAG", show_default=False)] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key: evaluation.num_samples=4")
    ] = None,
    step: Annotated[
        int | None, typer.Option("--step", metavar="NUMBER", help="Checkpoint of this step; by default the newest.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print metrics as JSON.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write every scored answer here, as JSON lines.")
    ] = None,
) -> None:
    """A run's folder evaluates its checkpoint; a run file or recipe evaluates the model it starts from.

    An engine with weights of its own evaluates these.
    """
    from lightrft_core import launch
    from lightrft_core.command_line import resolve_command_line
    from lightrft_core.errors import UserError
    from lightrft_core.evaluating import measure, measure_frozen
    from lightrft_core.frozen import is_frozen
    from lightrft_core.session import find_run

    run_dir = find_run(what)
    source = str(run_dir.run_yaml) if run_dir is not None else _run_file(what)
    run_file, plugins = resolve_command_line(source, list(sets or []), list(flags or []))
    if run_file.evaluation_task is None:
        raise UserError(
            "there is no evaluation task", where=f"{source}: evaluation.task", hint="Add one: evaluation: {task: ...}."
        )
    if is_frozen(run_file.engine):
        if step is not None:
            hint = "Leave it out, or take another engine."
            raise UserError(
                f"has no effect: engine {run_file.engine.name} has weights of its own.", where="--step", hint=hint
            )
        metrics, groups = measure_frozen(run_file, plugins)
        title = f"{what}, by the weights of engine {run_file.engine.name}"
    else:
        found, metrics, groups = measure(run_file, plugins, run_dir, step)
        title = f"{what}, step {found}"
    if launch.rank() == 0:
        _print(dict(metrics), title, as_json)
        if out is not None:
            _write(groups, out)


def _run_file(what: str) -> str:
    from lightrft_core.errors import UserError
    from lightrft_core.runfile import find_recipe

    try:
        find_recipe(what)
    except UserError as error:
        hint = f"{error.hint} `lightrft runs list` shows the runs."
        raise UserError("no such run, run file or recipe.", where=what, hint=hint) from None
    return what


def _print(metrics: dict[str, float], title: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(metrics, indent=2, sort_keys=True))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in sorted(metrics.items()):
        table.add_row(name, f"{value:.0f}" if value > 1 and float(value).is_integer() else f"{value:.4f}")
    Console(highlight=False).print(table)


def _write(groups: "list[Group]", path: Path) -> None:
    lines = [
        json.dumps(
            {
                "prompt_id": group.prompt.id,
                "response": rollout.text,
                "reference": group.prompt.reference,
                "reward": rollout.reward,
                "scores": rollout.scores,
                "finish_reason": rollout.finish_reason,
            }
        )
        for group in groups
        for rollout in group.rollouts
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
