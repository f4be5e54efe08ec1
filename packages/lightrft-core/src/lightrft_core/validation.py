"""A section's nodes checked by its pydantic model; every problem is one sentence with file, line and key."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lightrft_core.errors import UserError
from lightrft_core.nodes import KeyPath, Node, Origin, describe, dotted
from lightrft_core.sections import Section
from lightrft_core.suggest import did_you_mean, nearest

SectionT = TypeVar("SectionT", bound=Section)
Elsewhere = Mapping[str, Sequence[str]]


class KeyProblem(UserError):
    """A problem with one key of a run file; `origin` is where the key was written."""

    def __init__(self, what: str, *, key: str, origin: Origin, hint: str = "", where: str | None = None) -> None:
        self.key, self.origin = key, origin
        super().__init__(what, where=location(key, origin) if where is None else where, hint=hint)


def location(key: str, origin: Origin) -> str:
    """`run.yaml:7:3 loss.clip`, `--set loss.clip`, `--eps_clip (loss.clip_low)`; the key alone for a default."""
    if origin.layer == "default":
        return key
    if origin.layer == "file" or origin.source == "--set":
        return f"{origin.position} {key}"
    return f"{origin.source} ({key})"


@dataclass(slots=True)
class Report:
    """Collects problems.

    `elsewhere` gives the keys of all sections, asked for only where a key is unknown; `flags` maps LightRFT's flags to
    keys, and `waits` those whose key only some components have to the name of these.
    """

    elsewhere: Callable[[], Elsewhere]
    flags: Mapping[str, str] = field(default_factory=dict)
    waits: Mapping[str, str] = field(default_factory=dict)
    problems: list[UserError] = field(default_factory=list)

    def add(self, key: str, origin: Origin, what: str, hint: str = "") -> None:
        """One problem with one key."""
        self.problems.append(KeyProblem(what, key=key, origin=origin, hint=hint))

    def unknown_key(self, key: str, origin: Origin, siblings: Sequence[str]) -> None:
        """A key that does not exist, with the best guess at what was meant."""
        word = key.rpartition(".")[2]
        if origin.is_flag:
            known = f"Options there: {', '.join(siblings)}." if siblings else "It has no options."
            self.flag_without_key(key, origin, "the component chosen there has no such option.", known)
            return
        what = "no such option."
        meant = self.flags.get(word.replace("-", "_").lower())
        elsewhere = self.elsewhere()
        if meant is not None and word not in elsewhere:
            self.add(key, origin, what, f"LightRFT's flag --{word} is the key {meant!r}.")
            return
        self.add(key, origin, what, did_you_mean(word, siblings, elsewhere))

    def flag_without_key(self, key: str, origin: Origin, what: str, hint: str) -> None:
        """A LightRFT flag whose key the run does not have; the component that it waits for replaces the hint."""
        needs = self.waits.get(origin.source.lstrip("-").replace("-", "_"))
        self.add(key, origin, what, f"It waits for {needs}." if needs else hint)


def validate(model: type[SectionT], node: Node, key: str, report: Report) -> SectionT | None:
    """The section, or None with everything that is wrong with it reported. `key` is its dotted place."""
    if not isinstance(node.value, dict):
        report.add(key, node.origin, f"{describe(node.plain())} is not a section with options.")
        return None
    before = len(report.problems)
    try:
        section = model.model_validate(node.plain())
    except ValidationError as error:
        _report_errors(model, error, node, key, report)
        return None
    _report_disguised(section, node, key, report)
    return section if len(report.problems) == before else None


def _report_errors(model: type[Section], error: ValidationError, node: Node, key: str, report: Report) -> None:
    by_path: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        by_path.setdefault(_path_in(node, detail), []).append(detail)
    for path, details in by_path.items():
        at = _deepest(node, path)
        full = f"{key}.{dotted(path)}".rstrip(".") if not dotted(path).startswith("[") else f"{key}{dotted(path)}"
        owner = _owner(model, path)
        if details[0]["type"] == "extra_forbidden":
            report.unknown_key(full, at.key_origin, list(owner.model_fields) if owner else [])
        elif details[0]["type"] == "missing":
            flag = _flag_for(full, report)
            report.add(full, at.origin, "is missing.", f"{_about(owner, path)}{flag}")
        else:
            what, hint = _sentence(details, _about(owner, path))
            if at.origin.is_flag and details[0]["type"] == "literal_error":
                report.flag_without_key(full, at.origin, what, hint)  # another component's option has that choice
            else:
                report.add(full, at.origin, what, hint)


def _flag_for(key: str, report: Report) -> str:
    flag = next((name for name, target in report.flags.items() if target == key), None)
    return f" Flag: --{flag}." if flag else ""


def _path_in(node: Node, detail: ErrorDetails) -> KeyPath:
    """The part of pydantic's location that exists in the data; names of union members are left out."""
    path: list[str | int] = []
    at: Node | None = node
    for step in detail["loc"]:
        child = at.child(step) if at is not None else None
        if child is None:
            continue
        path.append(step)
        at = child
    if detail["type"] == "missing" and detail["loc"]:
        path.append(detail["loc"][-1])
    return tuple(path)


def _deepest(node: Node, path: KeyPath) -> Node:
    for step in path:
        node = node.child(step) or node
    return node


def _owner(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The model whose field the last step of `path` names."""
    owner: type[BaseModel] | None = model
    for step in path[:-1]:
        field_info = owner.model_fields.get(step) if owner is not None and isinstance(step, str) else None
        if field_info is None and isinstance(step, int):
            continue
        owner = _model_in(field_info.annotation) if field_info is not None else None
    return owner


def _model_in(annotation: Any) -> type[BaseModel] | None:  # Any: a type annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    parts: Sequence[Any] = getattr(annotation, "__args__", ())  # Any: type arguments
    return next((found for part in parts if (found := _model_in(part)) is not None), None)


def _about(owner: type[BaseModel] | None, path: KeyPath) -> str:
    name = next((step for step in reversed(path) if isinstance(step, str)), "")
    info = owner.model_fields.get(name) if owner is not None else None
    return " ".join((info.description or "").split()) if info is not None else ""


def _sentence(details: Sequence[ErrorDetails], about: str) -> tuple[str, str]:
    value = details[0]["input"]
    shown = repr(value) if isinstance(value, str) else describe(value).removeprefix("the number ")
    if len(details) > 1:
        wanted = list(dict.fromkeys(_wanted(detail) for detail in details))
        return f"{shown} is not {', or '.join(wanted)}.", ""
    detail = details[0]
    kind, context = detail["type"], detail.get("ctx", {})
    if value is None:
        return "has no value.", about
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        side = "small" if kind.startswith("greater") else "large"
        return f"{shown} is too {side}: it must be {_wanted(detail)}.", about
    if kind in ("literal_error", "enum"):
        choices = _choices(detail)
        near = nearest(str(value), choices, limit=1)
        return f"{shown} is not one of {', '.join(choices)}.", f"Did you mean {near[0]!r}?" if near else ""
    if kind == "int_from_float":
        return f"{shown} is not a whole number.", f"Nearest: {math.floor(value)} or {math.ceil(value)}."
    if kind in ("string_pattern_mismatch", "string_too_short"):
        return f"{shown} does not fit.", about
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f"{shown} is not text.", f"Put it in quotes: '{shown}'."
    if kind in ("value_error", "assertion_error"):
        return str(context.get("error", detail["msg"])).rstrip(".") + ".", ""
    return f"{shown} is not {_wanted(detail)}.", about if _wanted(detail).startswith("valid") else ""


_WANTED = (
    (r"int_.*", "a whole number"),
    (r"float_.*|finite_number|decimal_.*", "a number"),
    (r"bool_.*", "true or false"),
    (r"string_.*", "text"),
    (r"(list|tuple|set|frozen_set|sequence)_type", "a list"),
    (r"(dict|mapping|model|model_attributes|dataclass)_type", "a mapping"),
    (r"none_required", "nothing"),
)
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def _wanted(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        return f"{words} {context[bound]:g}"
    if kind in ("literal_error", "enum"):
        return "one of " + ", ".join(_choices(detail))
    for pattern, words in _WANTED:
        if re.fullmatch(pattern, kind):
            return words
    text = detail["msg"].removeprefix("Value error, ").rstrip(".")
    return f"valid: {text[:1].lower()}{text[1:]}"


def _choices(detail: ErrorDetails) -> list[str]:
    expected = str(detail.get("ctx", {}).get("expected", ""))
    return re.findall(r"'([^']*)'", expected) or [part.strip() for part in re.split(r",| or ", expected)]


def _report_disguised(section: Section, node: Node, key: str, report: Report) -> None:
    """Values that pydantic takes although nobody can mean them: `true` as the number 1, infinity, not-a-number."""
    for path, child in node.walk():
        if isinstance(child.value, dict | list):
            continue
        value = _value_at(section, path)
        full = f"{key}.{dotted(path)}"
        if isinstance(child.value, bool) and isinstance(value, int | float) and not isinstance(value, bool):
            report.add(full, child.origin, f"{describe(child.value)} is not a number.")
        elif isinstance(value, float) and not math.isfinite(value):
            report.add(full, child.origin, f"{value} is not a finite number.")


def _value_at(section: Section, path: KeyPath) -> Any:  # Any: whatever the model holds there
    value: Any = section  # Any: as above
    for step in path:
        if isinstance(value, BaseModel):
            value = value.__dict__.get(str(step))
        elif isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list | tuple) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return None
    return value
