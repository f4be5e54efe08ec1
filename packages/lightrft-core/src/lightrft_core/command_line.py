"""What the user typed after `lightrft train`: a run file or recipe, `--set` and flags, resolved together."""

from collections.abc import Sequence
from pathlib import Path

from lightrft_core.errors import Problems, UserError
from lightrft_core.flags import Parsed, read_command_line
from lightrft_core.overrides import Override, parse_set
from lightrft_core.plugins import Plugins
from lightrft_core.runfile import RunFile, find_recipe, open_run_file


def resolve_command_line(run: str | None, sets: Sequence[str], extra: Sequence[str]) -> tuple[RunFile, Plugins]:
    """The run file and the plugins that it uses.

    `run` is a path or a recipe's name; it may also stand among the flags in `extra`. `--set` and `key=value` win over
    flags. Raises `Problems` with everything that is wrong at once.
    """
    parsed, names = _read(run, extra)
    path, problems = _run_file(names)
    problems += parsed.errors
    overrides: list[Override] = list(parsed.overrides)
    for text in sets:
        try:
            overrides.append(parse_set(text))
        except UserError as problem:
            problems.append(problem)
    if run is not None and any(problem.where == run for problem in problems):
        raise Problems(problems)  # without its run file, everything else would seem to be missing
    return open_run_file(path, overrides, problems=problems)


def named_run_file(run: str | None, extra: Sequence[str]) -> str | None:
    """The run file or recipe as the command line has it, wherever it stands there; None for flags alone."""
    return next(iter(_read(run, extra)[1]), None)


def _read(run: str | None, extra: Sequence[str]) -> tuple[Parsed, list[str]]:
    """The flags, and the words that name a run file."""
    is_flag = run is not None and run.startswith("-")
    parsed = read_command_line([run, *extra] if run is not None and is_flag else list(extra))
    return parsed, [*([run] if run is not None and not is_flag else []), *parsed.words]


def _run_file(names: Sequence[str]) -> tuple[Path | None, list[UserError]]:
    if not names:
        return None, []
    problems = [
        UserError(
            f"{name!r} is neither a flag nor key=value.", where="command line", hint=f"The run file is {names[0]}."
        )
        for name in names[1:]
    ]
    try:
        return find_recipe(names[0]), problems
    except UserError as problem:
        return None, [problem, *problems]
