"""`lightrft launch torchrun|slurm|ray RUN.yaml`: get a run onto machines, each of which sees the run's folder."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lightrft_core.cli.train import FLAGS_NOTE, prepare, split_words

if TYPE_CHECKING:
    from lightrft_core.rundir import RunDir

HELP = "Get a run onto machines: commands for each node, a SLURM job, or a Ray cluster."
Words = Annotated[
    list[str] | None, typer.Argument(metavar="RUN.yaml | RECIPE | FLAG", show_default=False, help="As of `train`.")
]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key: run.name=x")]
Resume = Annotated[str | None, typer.Option("--resume", metavar="RUN", help="Go on with this run (folder or name).")]
Nodes = Annotated[int, typer.Option("--nodes", min=1, help="Machines.")]
GpusPerNode = Annotated[
    int, typer.Option("--gpus-per-node", min=0, help="Ranks on each machine; 0 is one rank on its CPUs.")
]


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help=f"{HELP}\n\nEvery machine needs the same Python environment, and must see the run's folder and what the "
        "run file names at the same paths. A run that was stopped or has failed goes on from its newest checkpoint.",
    )
    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    group.command("torchrun", context_settings=settings, epilog=FLAGS_NOTE)(torchrun)
    group.command("slurm", context_settings=settings, epilog=FLAGS_NOTE)(slurm)
    group.command("ray", context_settings=settings, epilog=FLAGS_NOTE)(ray)
    app.add_typer(group, name="launch")


def torchrun(
    words: Words = None,
    sets: Sets = None,
    resume: Resume = None,
    nodes: Nodes = 2,
    gpus_per_node: GpusPerNode = 8,
    host: Annotated[
        str | None, typer.Option("--host", help="First machine, as the others reach it; by default this one.")
    ] = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Free port on it.")] = 29500,
) -> None:
    """Make the run's folder and print the command to type on each node."""
    from lightrft_core.cli.launch_torchrun import commands

    run_dir, _ = _prepare(words, sets, resume, nodes * max(gpus_per_node, 1))
    print("\n".join(commands(run_dir.path, nodes, max(gpus_per_node, 1), host, port)))


def slurm(
    words: Words = None,
    sets: Sets = None,
    resume: Resume = None,
    nodes: Nodes = 1,
    gpus_per_node: GpusPerNode = 8,
    cpus_per_gpu: Annotated[int, typer.Option("--cpus-per-gpu", min=1, help="CPU cores of each rank.")] = 8,
    partition: Annotated[str | None, typer.Option("--partition", help="Partition to ask for.")] = None,
    account: Annotated[str | None, typer.Option("--account", help="Account to charge.")] = None,
    time: Annotated[str | None, typer.Option("--time", help="Time limit, as SLURM writes it: 4:00:00")] = None,
    job_name: Annotated[str | None, typer.Option("--job-name", help="By default the run's name.")] = None,
    sbatch: Annotated[
        list[str] | None, typer.Option("--sbatch", metavar="K=V", help="Another #SBATCH line: constraint=h100")
    ] = None,
    save_time: Annotated[
        str, typer.Option("--save-time", help="Stop and save this long before the time limit.")
    ] = "10m",
    requeue: Annotated[
        bool, typer.Option("--requeue", help="Queue the job again when the time limit stopped it.")
    ] = False,
    script: Annotated[
        Path | None, typer.Option("--script", metavar="FILE", help="Write it here; by default in the run's folder.")
    ] = None,
    print_only: Annotated[
        bool, typer.Option("--print-only", help="Write the script and print it; do not submit it.")
    ] = False,
) -> None:
    """Make the run's folder and a job script, and submit it with sbatch.

    Starting the script again goes on with the run."""
    from lightrft_core.cli.launch_slurm import Job, check_sbatch, script_text, submit
    from lightrft_core.stopping import parse_duration

    seconds = int(parse_duration(save_time, "--save-time"))
    if not print_only:
        check_sbatch()
    extra = {"partition": partition, "account": account, "time": time, "job-name": job_name}
    lines = [f"{name}={value}" for name, value in extra.items() if value is not None] + (sbatch or [])
    run_dir, is_resumed = _prepare(words, sets, resume, nodes * max(gpus_per_node, 1))
    with _discarded_if_unfit(run_dir, is_new=not is_resumed):
        text = script_text(Job(run_dir.path, nodes, gpus_per_node, cpus_per_gpu, seconds, requeue, tuple(lines)))
    path = script or run_dir.path / "job.sh"
    path.write_text(text, encoding="utf-8")
    run_dir.logs.mkdir(exist_ok=True)  # without it SLURM ends the job before its first line
    print(path.read_text(encoding="utf-8") if print_only else submit(path))
    print(f"run     {run_dir.path}\nscript  {path}", file=sys.stderr)


def ray(
    words: Words = None,
    sets: Sets = None,
    resume: Resume = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Ranks.")] = 1,
    gpus_per_worker: Annotated[int, typer.Option("--gpus-per-worker", min=0, max=1, help="0 trains on CPUs.")] = 1,
    cpus_per_worker: Annotated[int, typer.Option("--cpus-per-worker", min=1, help="CPU cores of each rank.")] = 1,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            help="Cluster: `auto` is the one that this machine belongs to, `local` starts one here for the run; by "
            "default `auto` where there is one, else `local`.",
        ),
    ] = None,
) -> None:
    """Train as a Ray Train job on a Ray cluster. Needs `pip install 'lightrft-core[ray]'`."""
    from lightrft_core.cli.launch_ray import Cluster, check_ray, run_on_ray
    from lightrft_core.errors import ExitCode

    check_ray()
    run_dir, is_resumed = _prepare(words, sets, resume, workers)
    with _discarded_if_unfit(run_dir, is_new=not is_resumed):
        code = run_on_ray(run_dir, Cluster(workers, gpus_per_worker, cpus_per_worker, address))
    if code == ExitCode.USER and not is_resumed:
        run_dir.discard_unused()
    raise typer.Exit(code)


@contextmanager
def _discarded_if_unfit(run_dir: "RunDir", *, is_new: bool) -> Iterator[None]:
    """Free the name of a run that never began, so that the corrected second try may have it."""
    from lightrft_core.errors import EnvironmentUnfit, UserError

    try:
        yield
    except (UserError, EnvironmentUnfit):
        if is_new:
            run_dir.discard_unused()
        raise


def _prepare(
    words: Sequence[str] | None, sets: Sequence[str] | None, resume: str | None, ranks: int
) -> "tuple[RunDir, bool]":
    """The run's folder and whether it is resumed, after everything about the run file was checked for so many ranks."""
    run, extra = split_words(words)
    prepared = prepare(run, sets or [], extra, resume, ranks=ranks, make=True)
    return prepared.run_dir, prepared.is_resumed
