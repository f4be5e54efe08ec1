"""`lightrft train [RUN.yaml | RECIPE | --resume RUN] [--set k=v] [LightRFT flags]`."""

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    from lightrft_core.plugins import Plugins
    from lightrft_core.rank_output import Say
    from lightrft_core.rundir import RunDir
    from lightrft_core.runfile import RunFile
    from lightrft_core.trainer import Trainer

logger = logging.getLogger(__name__)
FLAGS_NOTE = (
    "Every flag of LightRFT is accepted too (--pretrain DIR, --n_samples_per_prompt 8, ...); docs/run-file.md lists "
    "them."
)
EPILOG = f"{FLAGS_NOTE} Try: lightrft train quickstart"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "train",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        epilog=EPILOG,
        help="Train a model from a run file or a recipe, or resume a run.",
    )(train)


def train(
    words: Annotated[list[str] | None, typer.Argument(metavar="RUN.yaml | RECIPE | FLAG", show_default=False)] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="Override one key: loss.clip_high=0.28")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show what a step does, stop.")] = False,
    resume: Annotated[str | None, typer.Option("--resume", help="Go on with this run (folder or name).")] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Local processes; by default one per GPU.")
    ] = None,
) -> None:
    """Resolve, then run here or under torchrun."""
    from lightrft_core import launch

    run, extra = split_words(words)
    num = launch.world_size() if launch.is_launched() else processes or launch.num_gpus() or 1
    run_dir, run_file, plugins, is_resumed = prepare(run, sets or [], extra, resume, ranks=num, make=not dry_run)
    if dry_run:
        from lightrft_core.cli.dry_run import show

        show(run_file, plugins, run_dir if is_resumed else None)
        return
    if num > 1 and not launch.is_launched():
        raise typer.Exit(_under_torchrun(num, run_dir, is_resumed=is_resumed))
    train_here(run_file, plugins, run_dir, is_resumed=is_resumed)


def split_words(words: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """The run file, where the command line begins with one, and the flags."""
    extra = list(words or [])
    return (extra.pop(0) if extra and not extra[0].startswith("-") else None), extra


class Prepared(NamedTuple):
    """A run that can begin. `is_resumed`: from the newest checkpoint in its folder; without one that is a start."""

    run_dir: "RunDir"
    run_file: "RunFile"
    plugins: "Plugins"
    is_resumed: bool


def prepare(
    run: str | None, sets: Sequence[str], extra: Sequence[str], resume: str | None, *, ranks: int, make: bool
) -> Prepared:
    """Resolve the run file; make its folder, or open the one that is resumed. Only rank 0 writes, and others wait.

    Under `run.resume` a run is a resumed one even where its folder is new: other ranks see it only afterwards.
    """
    from lightrft_core import launch
    from lightrft_core.command_line import named_run_file, resolve_command_line
    from lightrft_core.errors import UserError
    from lightrft_core.manifest import note_origins
    from lightrft_core.resumption import require_resumable
    from lightrft_core.rundir import RunDir, default_name

    if resume is not None:
        if run is not None:
            raise UserError(f"--resume {resume} takes its run file from the run's folder", hint=f"Leave out {run!r}.")
        run_dir = RunDir.find(resume)
        require_resumable(run_dir)
        run_file, plugins = resolve_command_line(str(run_dir.run_yaml), list(sets), list(extra))
        _check(run_file, ranks)
        _go_on(run_dir, run_file, is_other=bool(sets or extra), make=make and launch.rank() == 0)
        return Prepared(run_dir, run_file, plugins, is_resumed=True)
    run_file, plugins = resolve_command_line(run, list(sets), list(extra))
    _check(run_file, ranks)
    section = run_file.run
    now = None if section.resume else datetime.now()
    name = section.name or default_name(Path(named_run_file(run, extra) or "run").name, now)
    if make and launch.is_launched() and launch.world_size() > 1 and section.name is None and now is not None:
        raise UserError(
            "the ranks that a launcher starts must agree on the run's folder, and its name would have the time in it.",
            where="run.name",
            hint="Set it, or `run.resume`; or leave the launcher out: `lightrft train --processes N` starts N ranks.",
        )
    run_dir = RunDir(Path(section.dir).absolute() / name)
    if launch.rank() != 0:
        if make:
            run_dir.await_run()
    elif section.resume and run_dir.run_yaml.is_file():
        require_resumable(run_dir)
        _go_on(run_dir, run_file, is_other=True, make=make)
    elif make:
        run_dir = RunDir.create(Path(section.dir), name, again=section.resume)
        run_dir.write_run_file(run_file.to_yaml())
        note_origins(run_file, run_dir)
    return Prepared(run_dir, run_file, plugins, is_resumed=section.resume)


def _check(run_file: "RunFile", ranks: int) -> None:
    """What can be known of a run without its folder."""
    from lightrft_core.batch_rule import check_batch
    from lightrft_core.frozen import require_trainable

    check_batch(run_file, ranks)
    require_trainable(run_file)


def _go_on(run_dir: "RunDir", run_file: "RunFile", *, is_other: bool, make: bool) -> None:
    """Resume it by this run file. Where that is not the run's own, what differs holds for the next resume too."""
    from lightrft_core import launch
    from lightrft_core.manifest import note_origins
    from lightrft_core.resumption import changes, deciding, note_changes, told

    changed = changes(run_dir, run_file) if is_other else {}
    if (other := told(deciding(changed))) and launch.rank() == 0:
        logger.warning(
            "%s had other settings, which its numbers depend on: %s. It goes on with the new ones; if you mean another "
            "run, give it a run.name of its own.",
            run_dir.path,
            other,
        )
    if not make:
        return
    run_dir.require_idle()
    run_dir.stop_file.unlink(missing_ok=True)
    if changed:
        run_dir.write_run_file(run_file.to_yaml())
        note_origins(run_file, run_dir)
        note_changes(run_dir, changed)


def _under_torchrun(num: int, run_dir: "RunDir", *, is_resumed: bool) -> int:
    """The folder exists by now, so the ranks resume it: with no checkpoint yet that is a start."""
    from lightrft_core import launch
    from lightrft_core.errors import ExitCode

    code = launch.torchrun(num, run_dir.path)
    if code == ExitCode.USER and not is_resumed:
        run_dir.discard_unused()
    return code


def train_here(
    run_file: "RunFile", plugins: "Plugins", run_dir: "RunDir", *, is_resumed: bool, tell: "Say | None" = None
) -> None:
    """Train on this rank, from the banner to the summary.

    With `tell`, which prints a line where people see it, this process's output is where it should be already."""
    from lightrft_core import launch
    from lightrft_core.batch_rule import check_batch
    from lightrft_core.cli.banner import banner
    from lightrft_core.cli.summary import print_summary
    from lightrft_core.errors import StoppedEarly, UserError
    from lightrft_core.rank_output import own_output
    from lightrft_core.session import Session

    def say(line: str) -> None:
        if launch.rank() == 0:
            print(line, file=sys.stderr, flush=True)

    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # busy waiting on a shared machine costs up to five times
    say(f"run        {run_dir.path}")
    for line in banner(run_file, plugins, check_batch(run_file, launch.world_size())):
        say(line)
    try:
        with nullcontext(tell) if tell else own_output(run_dir.logs, launch.rank()) as told:
            trainer: Trainer = Session(run_file, plugins, run_dir, say, told).train(resume=is_resumed)
    except StoppedEarly as stop:
        raise StoppedEarly(stop.what, hint=f"Go on with: lightrft train --resume {run_dir.path}") from None
    except UserError:
        if not is_resumed:
            run_dir.discard_unused()  # so that the corrected second try may have the same name
        raise
    if launch.rank() == 0:
        print_summary(trainer.evaluations, run_dir)
