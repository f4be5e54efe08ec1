"""`lightrft estimate [RUN.yaml | RECIPE | RUN] [--gpus 8 --gpu-memory 80GB] [--set k=v] [flags of train] [--json]`."""

import json
from typing import Annotated

import typer
from lightrft_core.errors import ExitCode

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
HELP = """Tell how much memory each rank of a run will need, phase by phase, and what to change if it does not fit.

    Nothing is loaded but the tokenizer and the prompts, and no GPU is needed. Exits 1 where the run does not fit into
    --gpu-memory. Every flag of `lightrft train` is accepted too.
"""


@app.command(
    help=HELP,
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "help_option_names": ["-h", "--help"],
    },
)
def estimate(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="RUN.yaml | RECIPE | RUN | FLAG", show_default=False)
    ] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="Override one key: strategy.use=fsdp2")] = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="Ranks with a GPU each; by default what is in this machine.")
    ] = None,
    gpu_memory: Annotated[
        str | None, typer.Option("--gpu-memory", metavar="SIZE", help="Memory of one GPU, such as 80GB or 79.6GiB.")
    ] = None,
    processes: Annotated[int | None, typer.Option("--processes", min=1, help="Ranks on CPUs; by default one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything in bytes, as JSON.")] = False,
) -> None:
    """Resolve, count, print."""
    from lightrft_engines.estimate.advice import advise
    from lightrft_engines.estimate.question import Question
    from lightrft_engines.estimate.report import as_data, print_report
    from lightrft_engines.estimate.target import choose_target

    question = Question.read(list(words or []), list(sets or []))
    target = choose_target(question.strategy, gpus=gpus, processes=processes, gpu_memory=gpu_memory)
    found = question.answer(target)
    advice = None if found.fits else advise(question, found)
    if as_json:
        print(json.dumps(as_data(found, advice), indent=2))
    else:
        print_report(found, advice)
    if found.fits is False:
        raise typer.Exit(int(ExitCode.FAILED))
