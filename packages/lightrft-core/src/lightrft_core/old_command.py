"""An old LightRFT command, or the shell script around it, as a run file.

The script is read, never run: continuation lines, `NAME=value` lines, launchers and redirections are only text here.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightrft_core.errors import Problems, UserError
from lightrft_core.flags import FLAGS, Parsed, read_command_line
from lightrft_core.layers import tree_of
from lightrft_core.overrides import Override
from lightrft_core.plugins import Plugins
from lightrft_core.runfile import READING_ORDER, load_run_file
from lightrft_core.validation import KeyProblem
from lightrft_core.yaml_marks import to_yaml

MAX_BYTES = 1_000_000
# what LightRFT does where a flag is not given and a run file's default differs
LIGHTRFT_DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "n_samples_per_prompt": ("4",),
    "generate_max_len": ("2048",),
    "top_p": ("0.9",),
    "actor_learning_rate": ("5e-7",),
    "lr_warmup_ratio": ("0.03",),
    "lr_scheduler": ("cosine_with_min_lr",),
    "kl_estimator": ("k3",),
    "init_kl_coef": ("0.001",),
}
KL_DEFAULTS = ("kl_estimator", "init_kl_coef")
BUNDLES = ("grpo", "dr_grpo", "dapo")
_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*|[@*#0-9])\}?")
_REDIRECTION = re.compile(r"(?<=\s)(?:\d|&)?>>?&?\s*[^\s'\"|;&]+")
_NUM_PROCESSES = re.compile(r"--?(?:nproc[-_]per[-_]node|num[-_]gpus)")


@dataclass(slots=True)
class Imported:
    """A run file's text, and what the old command said that it does not."""

    text: str
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def import_command(command: str, plugins: Plugins) -> Imported:
    """Turn a command line, or the path of a script, into a run file. Raises `UserError` where there is no command."""
    notes: list[str] = []
    words = _words(_read(command), notes)
    parsed = read_command_line(words)
    dropped = [str(error) for error in parsed.errors] + _without_switch(parsed)
    notes += [f"{word!r} belongs to no flag and is left out." for word in parsed.words]
    idle = {line.partition(":")[0] for line in dropped}
    overrides = [override for override in parsed.overrides if override.source not in idle]
    overrides += _defaults(parsed, notes)
    overrides = _keep_working(overrides, plugins, dropped, notes)
    said = tree_of(overrides).plain()
    ordered = {name: said[name] for name in READING_ORDER if name in said}
    return Imported(to_yaml(ordered), dropped, notes)


def _read(command: str) -> str:
    path = Path(command)
    try:
        is_file = len(command) < 4096 and path.is_file()
    except OSError:
        is_file = False
    if not is_file and command.strip() and len(command.split()) == 1:
        raise UserError("there is no such script.", where=command, hint="Give a script, or a whole command in quotes.")
    if not is_file:
        return command
    if path.stat().st_size > MAX_BYTES:
        raise UserError("is too large for a script.", where=command)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}.", where=command) from None


def _words(text: str, notes: list[str]) -> list[str]:
    """The flags of the command in it that has most of them, variables replaced where the script sets them."""
    values: dict[str, str] = {}
    best: list[str] = []
    for command in _commands(text):
        words = list(command)
        while words and (
            match := _ASSIGNMENT.fullmatch(words[1] if words[0] == "export" and len(words) > 1 else words[0])
        ):
            values[match[1]] = _expand(match[2], values, None)
            words = words[2 if words[0] == "export" else 1 :]
        flags = [_expand(word, values, None) for word in _after_script(words)]
        if sum(word.startswith("--") for word in flags) > sum(word.startswith("--") for word in best):
            best, launcher = flags, [_expand(word, values, None) for word in words]
    if not any(word.startswith("--") for word in best):
        raise UserError(
            "no command with flags is in it.", where="config import", hint="Give the line that starts training."
        )
    for index, word in enumerate(best):
        for name in _VARIABLE.findall(word):
            flag = next((before for before in reversed(best[: index + 1]) if before.startswith("--")), "")
            notes.append(f"${name} is not set in the script: fill it in ({flag.partition('=')[0]}).")
    notes += _processes(launcher)
    return best


def _commands(text: str) -> list[list[str]]:
    """Words of every command: quotes and continuation lines respected, comments and redirections left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"[ \t]*\\[ \t]*\n", " ", "\n".join(lines))
    lexer = shlex.shlex(_REDIRECTION.sub("", joined), posix=True, punctuation_chars=";&|\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    commands: list[list[str]] = [[]]
    try:
        for word in lexer:
            if word and set(word) <= set(";&|\n"):
                commands.append([])
            else:
                commands[-1].append(word)
    except ValueError as error:
        raise UserError(f"not a shell command: {error}.", where="config import", hint="Is a quote missing?") from None
    return [command for command in commands if command]


def _after_script(words: Sequence[str]) -> list[str]:
    """What follows the Python script or module; all of it where none is named."""
    for index, word in enumerate(words):
        if re.search(r"\.py$", word) and not (
            index and words[index - 1].startswith("--") and "=" not in words[index - 1]
        ):
            return list(words[index + 1 :])
        if word == "-m" and index + 1 < len(words) and "torch.distributed" not in words[index + 1]:
            return list(words[index + 2 :])
    return [word for index, word in enumerate(words) if any(other.startswith("--") for other in words[: index + 1])]


def _processes(words: Sequence[str]) -> list[str]:
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if _NUM_PROCESSES.fullmatch(name):
            number = value if equals else (words[index + 1] if index + 1 < len(words) else "")
            return [f"it ran {number} processes per node: `lightrft train RUN.yaml --processes {number}`."]
    return []


def _expand(text: str, values: Mapping[str, str], missing: str | None) -> str:
    def value(match: re.Match[str]) -> str:
        return values.get(match[1], match[0] if missing is None else missing)

    return _VARIABLE.sub(value, text)


def _without_switch(parsed: Parsed) -> list[str]:
    """Flags that LightRFT ignored, because the switch they belong to was not given."""
    return [
        f"{given.source}: had no effect without --{flag.switch}."
        for flag in FLAGS
        if (given := parsed.given.get(flag.name)) is not None and flag.switch and flag.switch not in parsed.given
    ]


def _defaults(parsed: Parsed, notes: list[str]) -> list[Override]:
    """Overrides that say what LightRFT did without being told."""
    estimator = parsed.given.get("advantage_estimator")
    has_bundle = "use_dapo" in parsed.given or (estimator is not None and estimator.value in BUNDLES)
    found: list[Override] = []
    for name, values in LIGHTRFT_DEFAULTS.items():
        is_off = name in KL_DEFAULTS and (has_bundle or _kl_is_off(parsed))
        is_length = name == "generate_max_len" and ("max_len" in parsed.given or "prompt_max_len" in parsed.given)
        if name not in parsed.given and not is_off and not is_length:
            found += read_command_line([f"--{name}", *values]).overrides
    kl_given = any(override.key.startswith("kl.") for override in [*found, *parsed.overrides])
    if kl_given and "use_kl_loss" not in parsed.given:
        found.append(Override("kl.place", "reward", "--no_use_kl_loss"))
    if found:
        said = ", ".join(f"{item.key}: {item.value}" for item in found)
        notes.append(f"LightRFT's defaults that differ from a run file's are written out: {said}.")
    return found


def _kl_is_off(parsed: Parsed) -> bool:
    coef = parsed.given.get("init_kl_coef")
    return coef is not None and coef.value == 0


def _keep_working(overrides: list[Override], plugins: Plugins, dropped: list[str], notes: list[str]) -> list[Override]:
    """Leave out what no installed component takes, until the rest resolves or only values are wrong."""
    while True:
        try:
            load_run_file(None, overrides, plugins)
        except Problems as problems:
            flags = [
                problem for problem in problems.problems if isinstance(problem, KeyProblem) and problem.origin.is_flag
            ]
            sources = {problem.origin.source for problem in flags}
            kept = [override for override in overrides if override.source not in sources]
            if len(kept) == len(overrides):
                notes += [f"still to do: {problem}" for problem in problems.problems]
                return overrides
            dropped += [str(problem) for problem in flags]
            overrides = kept
        else:
            return overrides
