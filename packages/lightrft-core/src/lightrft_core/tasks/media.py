"""Images, video and audio of a data row: paths, `file://`, bytes, base64 or `{"bytes", "path"}`. URLs are refused.

Raises plain `ValueError` with what is wrong; the caller knows the row.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lightrft_core.data import Media, MediaKind

PLACEHOLDER = re.compile(r"<(image|video|audio)>")
_MIN_BASE64 = 64  # shorter strings are taken for paths


def listed(value: object) -> list[Any]:  # Any: what the file holds
    """The items of a media column: a list, one item, a JSON list in a text cell, or nothing."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = json.loads(value)
    return list(value) if isinstance(value, list | tuple) else [value]


def as_media(kind: MediaKind, item: object, folder: Path) -> Media:
    """One item; a relative path is looked for in `folder`, the data file's own."""
    if isinstance(item, bytes):
        return Media(kind, item)
    if isinstance(item, Mapping):
        return _from_mapping(kind, item, folder)
    if not isinstance(item, str):
        raise ValueError(f"{kind} is a {type(item).__name__}; expected a path, bytes, base64 or an object with either")
    return _from_text(kind, item, folder)


def _from_mapping(kind: MediaKind, item: Mapping[str, Any], folder: Path) -> Media:  # Any: what the file holds
    if item.get("bytes") is not None:
        held = item["bytes"]
        return Media(kind, held if isinstance(held, bytes) else _decoded(kind, str(held)))
    for key in ("path", "url", "file"):
        if item.get(key):
            return as_media(kind, item[key], folder)
    raise ValueError(f"{kind} is an object without bytes or path; it has {', '.join(map(str, item)) or 'nothing'}")


def _from_text(kind: MediaKind, text: str, folder: Path) -> Media:
    if text.startswith(("http://", "https://")):
        raise ValueError(f"{kind} {text[:80]!r} is a URL; nothing is fetched: download it and give its path")
    if text.startswith("data:"):
        return Media(kind, _decoded(kind, text.partition(",")[2]))
    path = Path(unquote(urlsplit(text).path) if text.startswith("file://") else text)
    real = path if path.is_absolute() else folder / path
    if len(text) < 4096 and _is_file(real):
        return Media(kind, str(real.resolve()))
    if len(text) >= _MIN_BASE64 and not text.startswith("file://"):
        try:
            return Media(kind, base64.b64decode(text, validate=True))
        except binascii.Error:
            pass
    raise ValueError(f"{kind} file {str(real)[:200]!r} does not exist")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def _decoded(kind: MediaKind, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{kind} is not valid base64: {error}") from error
