"""Text that a model wrote, made safe to show: a completion may hold terminal control codes that recolour the screen,
rewrite the title or move the cursor, and bidirectional marks that reorder what is read."""

import re
from typing import Final

_CONTROL: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""`text` with control codes spelled out (`\x1b`, `\u202e`); tabs and line breaks stay."""
    return _CONTROL.sub(_spell, text.replace("\r\n", "\n"))


def one_line(text: str, width: int) -> str:
    r"""The same on one line of at most `width` characters: line breaks become `\n`, what is cut ends in an ellipsis."""
    line = printable(text).replace("\n", "\\n").replace("\t", " ")
    return line if len(line) <= width else line[: max(width - 1, 0)] + "…"


def _spell(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
