"""`lightrft`: one Typer app whose commands are imported only when they are called.

Every `LightRFTError` is printed here, once, as one paragraph on stderr, with its own exit code.
"""

import logging
import os
import select
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import TextIO

import typer

from lightrft_core import __version__, failures, launch
from lightrft_core.errors import ExitCode, LightRFTError

# command -> (module below lightrft_core.cli, what it says in --help)
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("train", "Train a model from a run file or a recipe, or resume a run."),
    "launch": ("launch", "Get a run onto machines: commands for each node, a SLURM job, or a Ray cluster."),
    "eval": ("evaluate", "Score a run's checkpoint, or any model, on a task."),
    "serve": ("serve", "Serve a checkpoint or a model over HTTP, as OpenAI's API."),
    "chat": ("chat", "Talk to a checkpoint, a model, or a running server."),
    "export": ("export", "Write a run's policy as a Hugging Face folder."),
    "compare": ("compare", "Train with several algorithms and seeds; table and plot."),
    "runs": ("runs", "List, show, compare and diff runs."),
    "rollouts": ("rollouts", "Search and read what the model wrote."),
    "config": ("config", "Show, check, start or import a run file."),
    "plugins": ("plugins", "List, explain, check and start plugins."),
    "doctor": ("doctor", "Report on this machine and environment, ready to paste."),
}


def build_app(argv: Sequence[str]) -> typer.Typer:
    """The app for this call: the command that `argv` names is real, the others are entries in the help."""
    app = typer.Typer(
        name="lightrft",
        help="Reinforcement fine-tuning of language, vision-language and audio-language models.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    completing = any(name.endswith("_COMPLETE") for name in os.environ)
    called = next((word for word in argv if not word.startswith("-")), None)
    for name, (module, summary) in COMMANDS.items():
        if completing or name == called:
            import_module(f"lightrft_core.cli.{module}").register(app)
        else:
            app.command(name, help=summary)(_elsewhere)
    if called not in COMMANDS:
        _mount_plugin_commands(app)
    return app


def _print_version(is_asked: bool) -> None:
    """Before a command is asked for: `lightrft --version` has none."""
    if is_asked:
        print(f"lightrft {__version__}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
    ),
) -> None:
    """The options of `lightrft` itself."""


def _elsewhere() -> None:
    raise RuntimeError("this entry only stands in the help; its command is registered when it is called")


def _mount_plugin_commands(app: typer.Typer) -> None:
    from lightrft_core.cli.plugins import mount_commands
    from lightrft_core.plugins import Plugins

    mount_commands(app, Plugins.load())


def run(argv: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    set_up_output()
    stdout = sys.stdout
    pipe = _duplicate(stdout)
    try:
        code = _call(argv)
        stdout.flush()
        return code
    except LightRFTError as error:
        failures.note(error)
        if _is_told_here(error):
            print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        print("stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if pipe is None or not _has_lost_reader(pipe):
            raise  # some other pipe broke, which is no reader's wish
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
        return int(ExitCode.OK)
    except Exception as error:
        failures.note(error)
        if launch.rank() == 0 or not failures.is_reported():
            raise
        return int(ExitCode.FAILED)  # its traceback is in the rank's own file
    finally:
        if pipe is not None:
            os.close(pipe)


def _is_told_here(error: LightRFTError) -> bool:
    """Once in all: by rank 0 where all ranks have it alike, else by the launcher if it tells errors, else here."""
    if launch.rank() == 0 and error.exit_code == ExitCode.STOPPED:
        return True
    if failures.is_reported() or error.exit_code == ExitCode.STOPPED:
        return False
    return launch.rank() == 0 or error.exit_code != ExitCode.USER


def _call(argv: Sequence[str]) -> int:
    try:
        build_app(argv)(args=list(argv), prog_name="lightrft", standalone_mode=True)
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):
            raise stop.__context__ from None  # typer turns it into a wordless exit 1, whichever pipe it was
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return int(ExitCode.OK)


def _duplicate(stdout: TextIO) -> int | None:
    """Another handle of stdout, for rich turns the first one into /dev/null when its pipe breaks."""
    try:
        return os.dup(stdout.fileno())
    except OSError:  # no file, such as a test's buffer
        return None


def _has_lost_reader(pipe: int) -> bool:
    """Whether it is a pipe that nobody reads any more, such as that of `lightrft runs list | head -1`."""
    poll = select.poll()
    poll.register(pipe, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to stderr as it is when it writes: a live display may have taken its place."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def set_up_output() -> None:
    """Warnings to stderr; characters that the terminal cannot show are escaped instead of ending the run."""
    handler = _Stderr()
    handler.setLevel(logging.WARNING)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", handlers=[handler])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """Entry point of the `lightrft` script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
