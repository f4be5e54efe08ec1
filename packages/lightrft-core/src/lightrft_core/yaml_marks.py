"""YAML as plain data that remembers where every value was written.

Only text, numbers, booleans, null, lists and mappings: no tags that build objects. Scalars follow YAML 1.2: `1e-6` is a
number, and `on`, `off`, `yes`, `no` stay text; a boolean field takes them as booleans all the same.
"""

import re
from pathlib import Path
from typing import NoReturn

import yaml

from lightrft_core.errors import UserError
from lightrft_core.nodes import Node, Origin, Plain, Scalar, describe

MAX_BYTES = 1_000_000
MAX_DEPTH = 40
MAX_NODES = 100_000


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
