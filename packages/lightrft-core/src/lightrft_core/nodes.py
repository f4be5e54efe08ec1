"""Plain data that remembers where every value was written: in which file, line and column, or by which flag."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Layer = Literal["default", "bundle", "file", "command"]
Scalar: TypeAlias = bool | int | float | str | None
KeyPath: TypeAlias = tuple[str | int, ...]
Plain: TypeAlias = Any  # scalars, lists and dicts of them: what YAML can hold


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written: a file with line and column, a flag, an algorithm's bundle, or a default."""

    source: str
    layer: Layer = "file"
    line: int = 0
    column: int = 0

    @property
    def position(self) -> str:
        """`run.yaml:7:3`, or the flag."""
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source

    @property
    def is_flag(self) -> bool:
        """Whether one of LightRFT's flat flags wrote it."""
        return self.layer == "command" and self.source != "--set"

    @property
    def line_position(self) -> str:
        """`run.yaml:7`, or the flag."""
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(slots=True)
class Node:
    """A value with its origin; `key` is where the key before it stands."""

    value: "Scalar | dict[str, Node] | list[Node]"
    origin: Origin
    key: Origin | None = None

    @property
    def key_origin(self) -> Origin:
        """Where the key stands, else the value."""
        return self.key or self.origin

    def plain(self) -> Plain:
        """The value without origins."""
        if isinstance(self.value, dict):
            return {name: child.plain() for name, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def fields(self) -> "dict[str, Node]":
        """The children by key; empty where this is no mapping."""
        return self.value if isinstance(self.value, dict) else {}

    def items(self) -> "list[Node]":
        """The children in order; empty where this is no list."""
        return self.value if isinstance(self.value, list) else []

    def child(self, step: str | int) -> "Node | None":
        """The child at a key or an index, if there is one."""
        if isinstance(step, int):
            return self.items()[step] if step < len(self.items()) else None
        return self.fields().get(step)

    def walk(self, path: KeyPath = ()) -> "Iterator[tuple[KeyPath, Node]]":
        """This node and all below it, with their paths."""
        yield path, self
        for name, child in self.fields().items():
            yield from child.walk((*path, name))
        for index, child in enumerate(self.items()):
            yield from child.walk((*path, index))

    def copy(self) -> "Node":
        """A deep copy."""
        return from_plain(self, self.origin)


def from_plain(value: Plain, origin: Origin) -> Node:
    """Plain data as nodes that all come from one place; nodes in it keep theirs."""
    if isinstance(value, Node):
        copied = from_plain(value.value, value.origin)
        return Node(copied.value, value.origin, value.key)
    if isinstance(value, Mapping):
        return Node({str(name): from_plain(child, origin) for name, child in value.items()}, origin)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return Node([from_plain(child, origin) for child in value], origin)
    return Node(value, origin)


def dotted(path: KeyPath) -> str:
    """`("filters", 0, "metric")` as `filters[0].metric`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


def describe(value: object) -> str:
    """A value's form, for messages: `a list`, `the number 5`."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value!r}"
    return "a list" if isinstance(value, list | tuple) else "a mapping"
