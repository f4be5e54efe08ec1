"""An option's type, default and bounds in the words of a run file rather than of Python."""

import types
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null", Path: "path"}


def type_name(annotation: Any) -> str:  # Any: a type, in any of the forms that Python has
    """Such as `number or null`, `list of text`, `'a' | 'b'`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin is Literal:
        return " | ".join(repr(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(part) for part in arguments)
    if origin in (list, tuple, set, frozenset, Sequence):
        parts = [part for part in arguments if part is not Ellipsis]
        is_pair = origin is tuple and Ellipsis not in arguments
        return f"[{', '.join(map(type_name, parts))}]" if is_pair else f"list of {type_name(parts[0])}"
    if origin in (dict, Mapping):
        return f"mapping of {type_name(arguments[0])} to {type_name(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " | ".join(repr(member.value) for member in annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"options {', '.join(annotation.model_fields)}"
    return _PLAIN.get(annotation, getattr(annotation, "__name__", str(annotation)))


def default_of(field: FieldInfo) -> str:
    """The default as YAML would write it on one line."""
    import yaml

    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, tuple | set | frozenset):
        value = list(value)
    plain = value.value if isinstance(value, Enum) else value
    if not isinstance(plain, str | int | float | bool | list | dict | None):
        return str(plain)
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def bounds_of(field: FieldInfo) -> str:
    """Such as `>= 0, <= 1`; empty where there is none. Bounds inside `Optional` and `Annotated` are found too."""
    return ", ".join(_bound(fact) for fact in [*field.metadata, *_inner_facts(field.annotation)] if _bound(fact))


def _inner_facts(annotation: Any) -> list[Any]:  # Any: a type, and whatever Annotated holds
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        flat = [fact for item in arguments[1:] for fact in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return flat + _inner_facts(arguments[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [fact for part in arguments for fact in _inner_facts(part)]
    return []


def _bound(fact: Any) -> str:  # Any: whatever Annotated holds
    match fact:
        case annotated_types.Ge(bound):
            return f">= {bound}"
        case annotated_types.Gt(bound):
            return f"> {bound}"
        case annotated_types.Le(bound):
            return f"<= {bound}"
        case annotated_types.Lt(bound):
            return f"< {bound}"
        case annotated_types.MinLen(length):
            return f"at least {length} long"
        case annotated_types.MaxLen(length):
            return f"at most {length} long"
    pattern = getattr(fact, "pattern", None)
    return f"of the form {pattern}" if pattern else ""
