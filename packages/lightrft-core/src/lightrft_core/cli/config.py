"""`lightrft config`: show, check, start or import a run file, and its JSON schema."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lightrft_core.runfile import RunFile

_FREE = {"ignore_unknown_options": True, "allow_extra_args": True}
Words = Annotated[list[str] | None, typer.Argument(metavar="RUN.yaml | RECIPE | FLAG", show_default=False)]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key: loss.clip_high=0.28")
]
Out = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to this new file instead of the terminal.")
]


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    config = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    config.command("show", context_settings=_FREE, help="Print the resolved run file.")(show)
    config.command("check", context_settings=_FREE, help="Find everything that is wrong with a run file.")(check)
    config.command("schema", help="Print a JSON schema of run files, for editors.")(schema)
    config.command("init", help="Write a commented run file to start from.")(init)
    config.command("import", context_settings=_FREE, help="Turn an old LightRFT command into a run file.")(import_)
    app.add_typer(config, name="config", help="Show, check, start or import a run file.")


def show(
    words: Words = None,
    sets: Sets = None,
    sources: Annotated[bool, typer.Option("--sources", help="Show where every value came from.")] = False,
) -> None:
    """Every option with its value, as YAML that loads again; or a line each with its source."""
    run_file = _resolve(words, sets)
    if sources:
        print_sources(run_file)
    else:
        print(run_file.to_yaml(), end="")


def check(
    words: Words = None,
    sets: Sets = None,
    ranks: Annotated[
        int, typer.Option("--ranks", min=1, metavar="NUMBER", help="Processes that the batch must fit.")
    ] = 1,
) -> None:
    """Keys, values, components and the batch arithmetic; nothing is started."""
    from lightrft_core.batch_rule import check_batch

    print(f"ok: {check_batch(_resolve(words, sets), ranks).describe()}")
    print("The model and the data were not opened; `lightrft train ... --dry-run` does that.", file=sys.stderr)


def schema(output: Out = None) -> None:
    """All sections and all installed components."""
    import json

    from lightrft_core.plugins import Plugins
    from lightrft_core.schema import run_file_schema

    _write(json.dumps(run_file_schema(Plugins.load()), indent=2) + "\n", output)


def init(
    algorithm: Annotated[str, typer.Option("--algorithm", help="Bundle to start from.")] = "grpo",
    output: Out = None,
) -> None:
    """What must be filled in, and all else commented out with its default."""
    from lightrft_core.plugins import Plugins
    from lightrft_core.starter import starter_text

    _write(starter_text(algorithm, Plugins.load(), str(output or "run.yaml")), output)


def import_(
    command: Annotated[list[str], typer.Argument(help="The command in quotes, or a shell script.", metavar="COMMAND")],
    output: Out = None,
) -> None:
    """The run file goes to stdout (or -o), what was left out and why to stderr."""
    from lightrft_core.old_command import import_command
    from lightrft_core.plugins import Plugins

    text = command[0] if len(command) == 1 else _quoted(command)
    imported = import_command(text, Plugins.load())
    _write(imported.text, output)
    _list("Left out:", imported.dropped)
    _list("To know:", imported.notes)


def print_sources(run_file: "RunFile") -> None:
    """`key  value  source`, one line each, in the order of the file."""
    rows = list(_rows(run_file.to_plain(), ""))
    width = min(max((len(key) for key, _ in rows), default=0), 44)
    for key, value in rows:
        print(f"{key:<{width}}  {value:<28}  {run_file.origins.get(key) or _above(key, run_file)}")


def _above(key: str, run_file: "RunFile") -> str:
    """The source of a value that was written as part of a whole, such as a list."""
    while "." in key or "[" in key:
        key = key[: max(key.rfind("."), key.rfind("["))]
        if key in run_file.origins:
            return run_file.origins[key]
    return "default"


def _rows(value: object, key: str) -> "list[tuple[str, str]]":
    if isinstance(value, dict):
        return [row for name, child in value.items() for row in _rows(child, f"{key}.{name}".removeprefix("."))]
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return [row for item in value for row in _rows(item, f"{key}[{item.get('name') or item.get('use')}]")]
    return [(key, "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value))]


def _resolve(words: Sequence[str] | None, sets: Sequence[str] | None) -> "RunFile":
    from lightrft_core.command_line import resolve_command_line

    return resolve_command_line(None, list(sets or []), list(words or []))[0]


def _quoted(words: Sequence[str]) -> str:
    import shlex

    return shlex.join(words)


def _write(text: str, output: Path | None) -> None:
    from lightrft_core.errors import UserError

    if output is None:
        print(text, end="")
        return
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(
            "exists already.", where=str(output), hint="Choose another name; nothing is overwritten."
        ) from None
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}.", where=str(output)) from None
    print(f"wrote {output}", file=sys.stderr)


def _list(title: str, lines: Sequence[str]) -> None:
    if lines:
        print(title, file=sys.stderr)
    for line in lines:
        print(f"  {line}", file=sys.stderr)
