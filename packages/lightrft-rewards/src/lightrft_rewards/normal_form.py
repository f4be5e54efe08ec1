"""A small normal form of LaTeX answers, by replacement alone: spelling that never changes the meaning is levelled.

Two answers with the same normal form are equal; different ones may still be. No parsing, no evaluation.
"""

import re

_SPACING = re.compile(r"\\[,;:! ]|\\q?quad(?![a-zA-Z])|~")
_SIZING = re.compile(r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big|displaystyle|textstyle|limits)(?![a-zA-Z])")
_FONT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname)\s*\{([^{}]*)\}")
_TRAILING_UNIT = re.compile(r"(?<=[\d})])\s*\\(?:text|textrm|mathrm|mbox)\s*\{\s*[a-zA-Z. ]+[^{}]*\}(?:\^\{?\d\}?)?$")
_DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|°|\\degrees?(?![a-zA-Z])")
_SHORT_FRACTION = re.compile(r"\\frac\s*(\d)\s*(\d)")
_SHORT_ROOT = re.compile(r"\\sqrt\s*(\d|[a-z](?![a-z]))")
_SHORT_POWER = re.compile(r"([\^_])\{(\w)\}")
_ASSIGNED = re.compile(r"^[a-zA-Z](?:_\w|_\{\w+\})?(?:=|\\in(?![a-zA-Z]))")
_SPACE = re.compile(r"\s+")


def normal_form(answer: str) -> str:
    """The answer with sizes, spaces, fonts, units, degree signs and short spellings levelled."""
    text = answer.strip().strip("$").replace("−", "-").replace("\\$", "").replace("\\(", "").replace("\\)", "")
    text = _SIZING.sub("", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\\cfrac", "\\frac")
    text = _SPACING.sub(" ", text).replace("{,}", ",").replace("\\%", "%").rstrip(" .%")
    text = _TRAILING_UNIT.sub("", text)
    text = _FONT.sub(r"\1", text)
    text = _DEGREES.sub("", text)
    text = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text)
    text = _SHORT_ROOT.sub(r"\\sqrt{\1}", text)
    text = _SHORT_POWER.sub(r"\1\2", text)
    text = text.replace("\\leq", "\\le").replace("\\geq", "\\ge").replace("\\neq", "\\ne").replace("\\cdot", "*")
    return _SPACE.sub("", text).rstrip(".")


def assigned_name(form: str) -> str | None:
    """The `x` of a normal form that begins with `x=`, else None."""
    match = _ASSIGNED.match(form)
    return match[0].removesuffix("=").removesuffix("\\in") if match else None


def unassigned(form: str) -> str:
    """A normal form without a leading `x=`."""
    return _ASSIGNED.sub("", form)


def plain_text(text: str) -> str:
    """Letters without case, runs of space as one, quotes and a full stop at the ends left out."""
    return _SPACE.sub(" ", text).strip().strip("\"'`*.").strip().casefold()
