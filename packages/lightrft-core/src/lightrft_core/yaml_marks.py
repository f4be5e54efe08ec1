"""YAML as plain data that remembers where every value was written.

Only text, numbers, booleans, null, lists and mappings: no tags that build objects. Scalars follow YAML 1.2: `1e-6` is a
number, and `on`, `off`, `yes`, `no` stay text; a boolean field takes them as booleans all the same.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

import yaml

from lightrft_core.errors import UserError

MAX_BYTES = 1_000_000
MAX_DEPTH = 40
MAX_NODES = 100_000

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


def read_yaml(path: Path, source: str) -> Node:
    """A file as nodes; `source` names it in messages. Raises `UserError` for whatever cannot be read as a mapping."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}.", where=source) from None
    if len(content) > MAX_BYTES:
        raise UserError(f"larger than {MAX_BYTES:,} bytes.", where=source, hint="A run file names data, it holds none.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"byte {error.start} is not UTF-8 text.", where=source) from None
    return parse_yaml(text, source)


def parse_yaml(text: str, source: str) -> Node:
    """Text as nodes; an empty text is an empty mapping. Raises `UserError` with file, line and column."""
    root = _compose(text, source)
    if root is None:
        return Node({}, Origin(source))
    node = _Builder(source).build(root)
    if node.value is None:
        return Node({}, node.origin)
    if not isinstance(node.value, dict):
        what = f"holds {describe(node.value)}, not sections."
        raise UserError(what, where=node.origin.position, hint="Write `section: ...` lines.")
    return node


def parse_value(text: str) -> Plain:
    """The value of `--set key=text`: a list or mapping where it starts as one, else one scalar."""
    if text.startswith(("[", "{", '"', "'")):
        try:
            root = _compose(text, "value")
            return None if root is None else _Builder("value").build(root).plain()
        except UserError:
            return text
    tag = _Loader("").resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]  # of types-pyyaml
    return _scalar(tag, text)


def to_yaml(data: Plain) -> str:
    """Plain data as YAML that `parse_yaml` reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


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


class _Loader(yaml.SafeLoader):
    """Composes with a depth limit and YAML 1.2 scalars; it never constructs anything."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - filled once, below
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # untyped in types-pyyaml
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


class _Dumper(yaml.SafeDumper):
    """Quotes exactly what the loader above would read as something else; writes no anchors."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: object) -> bool:
        return True


_SCALARS = {
    "null": (r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    "int": (r"^[-+]?(?:0|[1-9][0-9_]*)$", list("-+0123456789")),
    "float": (
        r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)"
        r"|[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+0123456789."),
    ),
    "merge": (r"^<<$", ["<"]),
}
_PREFIX = "tag:yaml.org,2002:"
for _name, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_PREFIX + _name, re.compile(_pattern), _first)


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        loader = _Loader(text)
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        tab = "\t" in (error.problem or "") or "\\t" in (error.problem or "")
        hint = "Indent with spaces, not tabs." if tab else ""
        raise UserError(f"not valid YAML: {error.problem or error.context}.", where=where, hint=hint) from None
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {str(error).splitlines()[0]}.", where=source) from None


def _scalar(tag: str, text: str) -> Scalar:
    kind = tag.removeprefix(_PREFIX)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text.replace("_", ""))
    if kind == "float":
        return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


class _Builder:
    """Turns composed YAML nodes into ours, within limits."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.left = MAX_NODES

    def origin(self, node: yaml.Node) -> Origin:
        mark = node.start_mark
        return Origin(self.source, "file", mark.line + 1, mark.column + 1)

    def build(self, node: yaml.Node, depth: int = 0) -> Node:
        self.left -= 1
        if self.left < 0 or depth > MAX_DEPTH:
            self.refuse(node, "aliases make this file too large or endless.")
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_PREFIX}map":
            return Node(self.mapping(node, depth), self.origin(node))
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_PREFIX}seq":
            return Node([self.build(item, depth + 1) for item in node.value], self.origin(node))
        if isinstance(node, yaml.ScalarNode) and node.tag.removeprefix(_PREFIX) in (*_SCALARS, "str"):
            try:
                return Node(_scalar(node.tag, node.value), self.origin(node))
            except ValueError:
                self.refuse(node, f"{node.value!r} does not fit its tag.")
        return self.refuse(
            node, f"the tag {node.tag!r} is not allowed: only text, numbers, true/false, lists and mappings."
        )

    def mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{_PREFIX}merge":
                merged |= self.merge(value_node, depth)
                continue
            name = self.key(key_node)
            if name in own:
                first = own[name].key_origin
                self.refuse(key_node, f"the key {name!r} is here twice; the first is in line {first.line}.")
            own[name] = self.build(value_node, depth + 1)
            own[name].key = self.origin(key_node)
        return {**merged, **own}

    def merge(self, node: yaml.Node, depth: int) -> dict[str, Node]:
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Node] = {}
        for part in parts:
            built = self.build(part, depth + 1)
            if not isinstance(built.value, dict):
                self.refuse(part, "`<<` takes a mapping or a list of them.")
            merged = {**built.fields(), **merged}
        return merged

    def key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            self.refuse(node, "a key must be text.")
        return str(node.value)

    def refuse(self, node: yaml.Node, what: str) -> NoReturn:
        raise UserError(what, where=self.origin(node).position)
