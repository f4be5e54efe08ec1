"""Finding and reading answers: `\\boxed{}`, the `####` line, the last number; numbers as exact fractions.

Everything here is linear in the text and never evaluates any of it.
"""

import re
from fractions import Fraction

MAX_ANSWER_CHARS = 4096
MAX_DIGITS = 256

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_HASH_LINE = re.compile(r"####[ \t]*([^\n]*)")
_NUMBER = re.compile(r"[-−+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?|[-−+]?\.\d+")
_PLAIN = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")
_TEX_FRACTION = re.compile(r"([-+]?)\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_WORDS = re.compile(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}")
_BEFORE = " \t\r\n*$`:;=~\"'"
_AFTER = _BEFORE + "."


def after_thinking(text: str) -> str:
    """What follows the last `</think>`; the whole text where there is none."""
    return text.rpartition("</think>")[2]


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}`, braces balanced; None where there is none or it does not end."""
    starts = [match.end() for match in _BOXED.finditer(text)]
    return _to_closing_brace(text, starts[-1]) if starts else None


def hash_line(text: str) -> str | None:
    """What follows the last `####` on its line; None where there is none or it is empty."""
    found = _HASH_LINE.findall(text)
    return found[-1].strip() or None if found else None


def last_number(text: str) -> str | None:
    """The last number that is written in the text, as it is written."""
    found = _NUMBER.findall(text[-MAX_ANSWER_CHARS:])
    return found[-1] if found else None


def parse_number(text: str) -> Fraction | None:
    """The value of an integer, decimal, fraction or percentage, exactly; None for anything else.

    Thousands commas, a currency sign and a trailing full stop are left out; `50%` reads as 50.
    """
    if len(text) > MAX_ANSWER_CHARS:
        return None
    bare = text.lstrip(_BEFORE).rstrip(_AFTER).replace("−", "-").replace("\\$", "").replace("$", "").replace("\\!", "")
    bare = bare.replace("{,}", ",").replace("\\,", "").replace("\\%", "").rstrip("%").lstrip(_BEFORE).rstrip(_AFTER)
    if match := _TEX_FRACTION.fullmatch(bare):
        sign, above, below = match.groups()
        return _ratio(sign + above.strip(), below.strip()) if above.strip()[:1] not in ("-", "+") or not sign else None
    above, slash, below = bare.partition("/")
    return _ratio(above.strip(), below.strip()) if slash else _plain(bare)


def first_number(text: str) -> Fraction | None:
    """The value of the whole text as a number, else of the only number in it (`72 clips`, `$5 per day`)."""
    whole = parse_number(text)
    if whole is not None:
        return whole
    words = _WORDS.sub(r" \1 ", text[:MAX_ANSWER_CHARS].replace("\\$", "$").replace("\\%", "%"))
    found = _NUMBER.findall(words)
    return parse_number(found[0]) if len(found) == 1 and not set(words) & {"\\", "^"} else None


def _to_closing_brace(text: str, start: int) -> str | None:
    depth = 1
    for place in range(start, len(text)):
        character = text[place]
        if character in "{}" and text[place - 1] != "\\":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return text[start:place].strip()
    return None


def _ratio(above: str, below: str) -> Fraction | None:
    numerator, denominator = _plain(above), _plain(below)
    return None if numerator is None or not denominator else numerator / denominator


def _plain(text: str) -> Fraction | None:
    if len(text) > MAX_DIGITS:
        return None
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    return Fraction(text) if _PLAIN.fullmatch(text) else None
