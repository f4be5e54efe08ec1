"""Symbolic equality by math-verify: the last and slowest way to compare two answers.

Meant for the main thread of a worker process that its parent can kill: math-verify's alarms work nowhere else, and no
alarm ends a power of big integers in C. Model text is parsed as LaTeX only, and sympy's own string evaluation is
switched off in this process, so nothing in an answer can reach Python's `eval`.
"""

import importlib
import re
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from math_verify.errors import TimeoutException

from lightrft_rewards.grader import Verdict

PARSE_SECONDS = 2
COMPARE_SECONDS = 2

_PLAIN_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)")
_BOXED_ONLY = (LatexExtractionConfig(boxed_match_priority=0),)


def forbid_evaluation() -> None:
    """Make sympy refuse to evaluate any string but a plain number, for the rest of this process.

    latex2sympy makes its numbers with `sympy.Number(text)`, which hands the digits to `eval`; nothing else should. What
    sympy imports late, and evaluates names of its own in, is imported first.
    """
    for late in ("sympy.physics.units", "sympy.solvers", "sympy.integrals", "sympy.sets", "sympy.calculus"):
        importlib.import_module(late)
    string_parser = importlib.import_module("sympy.parsing.sympy_parser")
    string_parser.__dict__.update(parse_expr=_number, eval_expr=_refuse)


def same_value(reference: str, answer: str) -> Verdict:
    """Whether two LaTeX answers mean the same. Raises `ValueError` where the reference cannot be read."""
    expected = _parsed(reference)
    if not expected:
        raise ValueError(f"the reference {reference[:80]!r} cannot be read as mathematics")
    given = _parsed(answer)
    if not given:
        return "unparsed"
    try:
        is_same = verify(expected, given, timeout_seconds=COMPARE_SECONDS, raise_on_error=True)
    except (Exception, TimeoutException):  # sympy raises whatever it likes where it cannot compare two things
        return "unparsed"
    return "correct" if is_same else "wrong"


def _parsed(answer: str) -> list[Any]:  # Any: sympy expressions
    text = "\\boxed{" + answer + "}"
    found: list[Any] = parse(text, _BOXED_ONLY, fallback_mode="no_fallback", parsing_timeout=PARSE_SECONDS)
    return found


def _number(text: str, **_: object) -> Any:  # Any: a sympy number
    """What `parse_expr` makes of digits; it is called with options that digits do not need."""
    bare = text.strip()
    if not _PLAIN_NUMBER.fullmatch(bare):
        raise SyntaxError("text is not evaluated here")
    sympy = importlib.import_module("sympy")
    return sympy.Float(bare) if "." in bare else sympy.Integer(bare)


def _refuse(*_: object) -> None:
    raise SyntaxError("text is not evaluated here")
