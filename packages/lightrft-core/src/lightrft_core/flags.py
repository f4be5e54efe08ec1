"""LightRFT's flat flags (`--n_samples_per_prompt 8`) as overrides of run-file keys."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightrft_core.errors import UserError
from lightrft_core.flag_rows import Always, Flag, FlagKind, GivenFlag, Refused, Waits
from lightrft_core.flag_table import FLAGS, GROUPS
from lightrft_core.nodes import Plain
from lightrft_core.overrides import Override, parse_set
from lightrft_core.resolve import keys_elsewhere
from lightrft_core.suggest import nearest

__all__ = ["FLAGS", "GROUPS", "Parsed", "keys_by_flag", "parse_flags", "read_command_line", "waits_by_source"]

_FALSE, _TRUE = ("false", "no", "off", "0"), ("true", "yes", "on", "1")
_SET = re.compile(r"[a-z_]\w*([.\[][^=\s]*|)=.*", re.DOTALL)
_FLAG = re.compile(r"--?[A-Za-z][\w.-]*(=.*)?", re.DOTALL)
TRAIN_OPTIONS = ("set", "dry_run", "resume", "processes", "help")


@dataclass(slots=True)
class Parsed:
    """A command line read as far as it goes: overrides in the order of the table, words, and what is wrong."""

    overrides: list[Override] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    errors: list[UserError] = field(default_factory=list)
    given: dict[str, GivenFlag] = field(default_factory=dict)


def parse_flags(args: Sequence[str]) -> tuple[list[Override], list[UserError]]:
    """Flags (and `key=value` words) as overrides, and everything that is wrong with them."""
    parsed = read_command_line(args)
    for word in parsed.words:
        parsed.errors.append(UserError(f"{word!r} is neither a flag nor key=value.", where="command line"))
    return parsed.overrides, parsed.errors


def read_command_line(args: Sequence[str]) -> Parsed:
    """As `parse_flags`, but words that belong to no flag are returned. `key=value` wins over flags."""
    parsed = Parsed()
    sets: list[Override] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if word == "--set" or word.startswith("--set="):
            text = word.partition("=")[2] if "=" in word else (rest.pop(0) if rest else "")
            _collect(parsed, sets, text)
        elif _FLAG.fullmatch(word):
            _read_flag(word, rest, parsed)
        elif _SET.fullmatch(word) and not Path(word).exists():
            _collect(parsed, sets, word)
        else:
            parsed.words.append(word)
    _transform(parsed)
    parsed.overrides += sets
    return parsed


def keys_by_flag() -> dict[str, str]:
    """Every name of a flag that sets one key, with that key."""
    plain = [flag for flag in FLAGS if flag.shown_keys and re.fullmatch(r"[\w.\[\]]+", flag.shown_keys)]
    return {name: flag.shown_keys for flag in plain for name in flag.names.split()}


def waits_by_source() -> dict[str, str]:
    """Names of flags whose key only some components have, with those components."""
    return {name: flag.needs for flag in FLAGS if flag.needs for name in flag.names.split()}


def _collect(parsed: Parsed, sets: list[Override], text: str) -> None:
    try:
        sets.append(parse_set(text))
    except UserError as error:
        parsed.errors.append(error)


def _names() -> dict[str, tuple[Flag, bool]]:
    """Every spelling with its row, and whether it turns a switch off."""
    found = {name: (flag, False) for flag in FLAGS for name in flag.names.split()}
    found |= {name: (flag, True) for flag in FLAGS for name in flag.off.split()}
    return found


def _read_flag(word: str, rest: list[str], parsed: Parsed) -> None:
    typed, equals, attached = word.partition("=")
    names = _names()
    name = typed.lstrip("-").replace("-", "_")
    found = names.get(name)
    if found is None:
        helpful = sorted(names, key=lambda known: isinstance(names[known][0].to, Waits | Refused))
        parsed.errors.append(_unknown(typed, name, helpful))
        if not equals and rest and not _FLAG.fullmatch(rest[0]):
            rest.pop(0)  # its value, so that one mistake gives one message
        return
    flag, is_off = found
    texts = [attached] if equals else _take(flag.kind, rest)
    try:
        value = _value(flag.kind, texts)
        if is_off:
            value = not value
    except ValueError as error:
        parsed.errors.append(UserError(str(error), where=typed, hint=f"It is: {flag.help}"))
        return
    parsed.given[flag.name] = GivenFlag(value, typed)


def _unknown(typed: str, name: str, names: Sequence[str]) -> UserError:
    if "." in typed:
        return UserError(
            "no such flag.", where=typed, hint=f"Keys of the run file go by --set {typed.lstrip('-')}=VALUE."
        )
    return UserError("no such flag.", where=typed, hint=_guess(name, names))


def _guess(name: str, names: Sequence[str]) -> str:
    """A key of the run file by just this name, else the nearest flag, else the nearest key."""
    keys = {key: sections[0] for key, sections in keys_elsewhere().items() if not sections[0].startswith("(")}
    flags = nearest(name, [*names, *TRAIN_OPTIONS], limit=1)
    key = next(iter(nearest(name, keys, limit=1)), "")
    if key and (key == name or not flags):
        return f"Did you mean --set {keys[key]}.{key}=VALUE?"
    if flags:
        return f"Did you mean --{flags[0]}?"
    return "docs/run-file.md lists all flags; keys of the run file go by --set."


def _take(kind: FlagKind, rest: list[str]) -> list[str]:
    """The words after a flag that are its value."""
    if kind == "switch":
        return [rest.pop(0)] if rest and rest[0].lower() in ("true", "false") else ["true"]
    taken: list[str] = []
    while rest and not _FLAG.fullmatch(rest[0]) and (not taken or kind in ("floats", "texts")):
        if taken and kind == "floats" and not _is_number(rest[0]):
            break
        taken.append(rest.pop(0))
    return taken


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _value(kind: FlagKind, texts: Sequence[str]) -> Plain:
    """The flag's value. Raises `ValueError` with a sentence."""
    if not texts or (kind != "switch" and all(not text for text in texts)):
        raise ValueError("needs a value.")
    return _READERS[kind](list(texts))


def _switch(texts: Sequence[str]) -> bool:
    if texts[0].lower() in _TRUE:
        return True
    if texts[0].lower() in _FALSE:
        return False
    raise ValueError(f"{texts[0]!r} is not true or false.")


def _int(texts: Sequence[str]) -> int:
    try:
        return int(texts[0].replace("_", ""))
    except ValueError:
        if _is_number(texts[0]) and float(texts[0]).is_integer():
            return int(float(texts[0]))
        raise ValueError(f"{texts[0]!r} is not a whole number.") from None


def _float(text: str) -> float:
    if not _is_number(text):
        raise ValueError(f"{text!r} is not a number.")
    return float(text)


def _floats(texts: Sequence[str]) -> list[float]:
    return [_float(part) for text in texts for part in re.split(r"[,\s]+", text.strip("()[] ")) if part]


def _path(text: str) -> str:
    """Absolute where it exists here, so that the resolved run file works from anywhere."""
    path = Path(text).expanduser()
    return str(path.resolve()) if path.exists() else text


def _paths(texts: Sequence[str]) -> str | list[str]:
    paths = [_path(part.strip()) for part in texts[0].split(",") if part.strip()]
    return paths[0] if len(paths) == 1 else paths


_READERS: Mapping[FlagKind, Callable[[list[str]], Plain]] = {
    "text": lambda texts: texts[0],
    "path": lambda texts: _path(texts[0]),
    "paths": _paths,
    "int": _int,
    "float": lambda texts: _float(texts[0]),
    "floats": _floats,
    "texts": lambda texts: [part for text in texts for part in text.split(",") if part],
    "switch": _switch,
}


def _transform(parsed: Parsed) -> None:
    by_key: dict[str, Override] = {}
    for flag in FLAGS:
        given = parsed.given.get(flag.name)
        if given is None:
            continue
        try:
            overrides = _overrides(flag, given, parsed.given)
        except UserError as error:
            parsed.errors.append(error)
            continue
        for override in overrides:
            first = by_key.setdefault(override.key, override)
            if first is not override and first.value != override.value:
                what = f"sets {override.key} to {override.value!r}, and {first.source} sets it to {first.value!r}."
                parsed.errors.append(UserError(what, where=override.source, hint="Give one of them."))
        parsed.overrides += overrides


def _overrides(flag: Flag, given: GivenFlag, others: Mapping[str, GivenFlag]) -> list[Override]:
    if isinstance(flag.to, str):
        return [given.override(flag.to, given.value)]
    if isinstance(flag.to, Refused):
        raise given.refuse(f"has no effect: {flag.to.why}.")
    if isinstance(flag.to, Waits):
        raise given.refuse(f"waits for {flag.to.component}, which is not here yet.", "Leave it out.")
    if isinstance(flag.to, Always):
        if given.value is False:
            raise given.refuse(f"cannot be turned off: {flag.to.why}.")
        return []
    return list(flag.to(given, others))
