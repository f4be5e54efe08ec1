"""Limits that a model's answer must keep before a parser sees it: cheap checks, linear in its length."""

import math
import re

from lightrft_rewards.answers import MAX_DIGITS

MAX_PARSED_CHARS = 1024
MAX_NESTING = 12
MAX_POWER = 100_000

_DIGITS = re.compile(rf"\d{{{MAX_DIGITS + 1},}}")
_DOUBLE_POWER = re.compile(r"\^\s*(?:\\[a-zA-Z]+|\w)\s*\^")
_NUMBER_POWER = re.compile(r"[\d)}\]]\s*\^\s*[{(\s+-]*(\d+)")
_FACTORIAL = re.compile(r"(?:\d{4,}|[)}\]!])\s*!")
_BIG_CHOICE = re.compile(r"binom\s*\{\s*\d{4,}|\d{4,}\s*\\choose")
_OPERATIONS = re.compile(r"\\(?:sum|prod|coprod|i*nt|oint|lim(?:sup|inf)?|bigcup|bigcap|Gamma|zeta)(?![a-zA-Z])")
_CODE = re.compile(r"__|\b(?:import|eval|exec)\b|[@`#]|\\(?:input|write|include)(?![a-z])")
_POWER_TOKENS = re.compile(r"\\[a-zA-Z]+|\S")


def limit_broken(answer: str) -> str | None:
    """Which limit an answer breaks, in words, or None where it may be parsed."""
    if len(answer) > MAX_PARSED_CHARS:
        return f"longer than {MAX_PARSED_CHARS} characters"
    checks = (
        (_nesting(answer) > MAX_NESTING, f"nested deeper than {MAX_NESTING}"),
        (_DIGITS.search(answer) is not None, f"a number of more than {MAX_DIGITS} digits"),
        (_power(answer) > MAX_POWER, "a huge power"),
        (_is_tower(answer), "a tower of powers"),
        (_FACTORIAL.search(answer) is not None, "a factorial of a large or unknown number"),
        (_BIG_CHOICE.search(answer) is not None, "a binomial of a large number"),
        (_OPERATIONS.search(answer) is not None, "an operation that is still to be done"),
        (_CODE.search(answer) is not None, "text that is no mathematics"),
    )
    return next((name for is_broken, name in checks if is_broken), None)


def _nesting(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _power(text: str) -> int:
    """Product of the exponents of numbers and brackets: what `((9^{99})^{99})^{99}` amounts to."""
    return math.prod(max(1, int(exponent)) for exponent in _NUMBER_POWER.findall(text)[:64])


def _is_tower(text: str) -> bool:
    """Whether an exponent holds a power of a number or bracket, or a power of a power: `9^{9^9}`, not `e^{x^2}`."""
    if _DOUBLE_POWER.search(text):
        return True
    groups: list[bool] = []  # of each open bracket: whether it is an exponent
    is_exponent, previous = False, ""
    for mark in _POWER_TOKENS.findall(text):
        if mark == "^" and any(groups) and (not previous.isalpha() or sum(groups) > 1):
            return True
        if mark in "([{":
            groups.append(is_exponent)
        elif mark in ")]}" and groups:
            groups.pop()
        is_exponent, previous = mark == "^", mark
    return False
