"""One key set from the command line: `--set loss.clip_high=0.28`, `--set filters[spread].metric=accuracy`.

An item of a list is named by its `use` (a reward also by its `name`) or by its index; a name that is not there yet adds
an item.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from lightrft_core.errors import UserError
from lightrft_core.kinds import BY_SECTION
from lightrft_core.nodes import KeyPath, Node, Origin, Plain, from_plain
from lightrft_core.suggest import did_you_mean
from lightrft_core.yaml_marks import parse_value

_STEP = re.compile(r"(?P<key>[^.\[\]]+)(?P<selectors>(?:\[[^\[\]]+\])*)(?:\.|$)")
_SELECTOR = re.compile(r"\[([^\[\]]+)\]")


@dataclass(frozen=True, slots=True)
class Select:
    """`[spread]`: an item of a list."""

    name: str


Step: TypeAlias = str | Select


@dataclass(frozen=True, slots=True)
class Override:
    """A key, its value as YAML reads it, and what set it: `--set`, or a flag such as `--clip_range_higher`."""

    key: str
    value: Plain
    source: str

    @property
    def where(self) -> str:
        """For messages: `--set loss.clip_high`."""
        return f"{self.source} {self.key}" if self.source == "--set" else f"{self.source} ({self.key})"

    @property
    def origin(self) -> Origin:
        """The same for nodes."""
        return Origin(self.source, "command")


def parse_set(text: str) -> Override:
    """`a.b=c` with a YAML value. Raises `UserError` where it is none."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"{text!r} is not key=value.", where="--set", hint="For example --set optim.lr=1e-6.")
    override = Override(key, parse_value(value.strip()), "--set")
    split_key(override)
    return override


def split_key(override: Override) -> list[Step]:
    """The steps of a key. Raises `UserError` where it is malformed."""
    steps: list[Step] = []
    position = 0
    while position < len(override.key):
        match = _STEP.match(override.key, position)
        if match is None:
            break
        steps.append(match["key"].strip().replace("-", "_"))
        steps += [Select(name.strip()) for name in _SELECTOR.findall(match["selectors"])]
        position = match.end()
    if not steps or position < len(override.key) or override.key.endswith("."):
        hint = "Write section.key or section[name].key, for example filters[spread].metric."
        raise UserError("is not a key.", where=override.where, hint=hint)
    return steps


def section_of(override: Override) -> str:
    """The first word of its key."""
    step = split_key(override)[0]
    return step if isinstance(step, str) else ""


def apply(root: Node, override: Override) -> None:
    """Set the key in place; mappings and list items on the way are made. Raises `UserError` where it cannot be."""
    steps = split_key(override)
    node = root
    path: KeyPath = ()
    for step in steps[:-1]:
        node = _enter(node, step, path, override)
        path = (*path, step if isinstance(step, str) else f"[{step.name}]")
    last = steps[-1]
    value = from_plain(override.value, override.origin)
    if isinstance(last, Select):
        _set_item(node, last, value, path, override)
    else:
        _mapping(node, path, override)[last] = value


def _enter(node: Node, step: Step, path: KeyPath, override: Override) -> Node:
    if isinstance(step, Select):
        return _item(node, step, path, override)
    fields = _mapping(node, path, override)
    child = fields.get(step)
    if child is None or child.value is None:
        child = fields[step] = Node([] if _is_many((*path, step)) else {}, override.origin)
    return child


def _mapping(node: Node, path: KeyPath, override: Override) -> dict[str, Node]:
    if isinstance(node.value, dict) and not _is_many(path):
        return node.value
    shown = _text(path)
    if isinstance(node.value, list | dict):
        names = [name for name in map(_name_of, node.items()) if name]
        example = names[0] if names else "name"
        hint = f"Name the item: {shown}[{example}]."
        raise UserError(f"{shown} is a list.", where=override.where, hint=hint)
    raise UserError(f"{shown} has no keys.", where=override.where)


def _item(node: Node, select: Select, path: KeyPath, override: Override) -> Node:
    items = _list(node, path, override)
    found = _find(items, select, path, override)
    if found is None:
        found = Node({"use": Node(select.name, override.origin)}, override.origin)
        items.append(found)
    if isinstance(found.value, str):
        found.value = {"use": Node(found.value, found.origin)}
    return found


def _set_item(node: Node, select: Select, value: Node, path: KeyPath, override: Override) -> None:
    if not isinstance(value.value, dict):
        raise UserError(
            "takes a mapping of options.", where=override.where, hint="Or set one: append .key to the name."
        )
    known = _find(_list(node, path, override), select, path, override)
    if known is None and "use" in value.value:
        node.items().append(value)
        return
    _item(node, select, path, override).fields().update(value.value)


def _find(items: Sequence[Node], select: Select, path: KeyPath, override: Override) -> Node | None:
    if select.name.isdecimal():
        if int(select.name) < len(items):
            return items[int(select.name)]
        raise UserError(f"{_text(path)} has {len(items)} items; they count from 0.", where=override.where)
    for key in ("name", "use"):
        for item in items:
            child = item.child(key)
            if child is not None and child.value == select.name:
                return item
    return next((item for item in items if item.value == select.name), None)


def _list(node: Node, path: KeyPath, override: Override) -> list[Node]:
    if isinstance(node.value, list):
        return node.value
    many = [kind.section for kind in BY_SECTION.values() if kind.count == "many"]
    hint = did_you_mean(str(path[-1]) if path else "", many)
    raise UserError(f"{_text(path)} is not a list of components.", where=override.where, hint=hint)


def _is_many(path: KeyPath) -> bool:
    return len(path) == 1 and str(path[0]) in BY_SECTION and BY_SECTION[str(path[0])].count == "many"


def _name_of(item: Node) -> str:
    use = item.child("use")
    return str(use.value) if use is not None else ""


def _text(path: KeyPath) -> str:
    return ".".join(map(str, path)).replace(".[", "[")
