"""Are two mathematical answers equal? Cheapest first: one normal form, equal numbers, then symbols.

Three results: correct, wrong, and unparsed, where the answer breaks a limit or is no mathematics. Unparsed earns
nothing, but is counted apart from wrong, because a grader that cannot read is a wrong gradient.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Literal

from lightrft_rewards.answers import MAX_ANSWER_CHARS, first_number, hash_line, last_boxed, parse_number
from lightrft_rewards.limits import limit_broken
from lightrft_rewards.normal_form import assigned_name, normal_form, unassigned

Verdict = Literal["correct", "wrong", "unparsed"]

_NUMBER_WITH_UNIT = re.compile(r"([^\sa-zA-Z]{1,40})\s+[a-zA-Z]{2,20}(?:\s[a-zA-Z]{1,20}){0,4}\.?")
CACHE_SIZE = 20_000
DECIMALS = 6
"""Decimals are equal where they agree when rounded to so many places, as in math-verify."""


class MathGrader:
    """Grades answers and remembers the verdicts: siblings repeat each other a lot.

    With `is_symbolic` the third step needs math-verify, and a process that may be killed. Without, an answer beside a
    number (`72 clips`) is read as that number where the reference is one.
    """

    def __init__(self, *, is_symbolic: bool) -> None:
        self._same_value = _symbolic() if is_symbolic else _numeric
        self._known: dict[tuple[str, str], Verdict] = {}

    def grade(self, reference: str, answer: str) -> Verdict:
        """The verdict on an answer, as extracted. Raises `ValueError` where the reference cannot be read."""
        key = (reference, answer)
        if key not in self._known:
            if len(self._known) >= CACHE_SIZE:
                self._known.clear()
            self._known[key] = self._grade(reference_answer(reference), answer)
        return self._known[key]

    def _grade(self, reference: str, answer: str) -> Verdict:
        if len(answer) > MAX_ANSWER_CHARS:
            return "unparsed"
        if same_form(reference, answer):
            return "correct"
        names = assigned_name(normal_form(reference)), assigned_name(normal_form(answer))
        if None not in names and names[0] != names[1]:
            return "wrong"
        expected, given = _value(reference), _value(answer)
        if expected is not None and given is None:
            given = _value(_without_unit(answer))
        if expected is not None and given is not None:
            is_decimal = "." in reference.rstrip(" .") or "." in answer.rstrip(" .")
            return "correct" if _equal(expected, given, is_decimal=is_decimal) else "wrong"
        latex = answer.replace("**", "^")
        return "unparsed" if limit_broken(latex) else self._same_value(reference, latex)


def reference_answer(reference: str) -> str:
    """The answer in a reference: its last box, its `####` line, or all of it."""
    return last_boxed(reference) or hash_line(reference) or reference.strip()


def same_form(reference: str, answer: str) -> bool:
    """Whether both have the same normal form; words are equal whatever their case, and `x = 5` is 5 but not `y = 5`."""
    expected, given = normal_form(reference), normal_form(answer)
    if not given:
        return False
    if given.isalpha() and expected.isalpha():
        return given.casefold() == expected.casefold()
    return given == expected or unassigned(given) == expected or given == unassigned(expected)


def _without_unit(answer: str) -> str:
    """`5 dollars` as `5`."""
    match = _NUMBER_WITH_UNIT.fullmatch(answer.strip())
    return match[1] if match else ""


def _value(answer: str) -> Fraction | None:
    return parse_number(unassigned(normal_form(answer)))


def _equal(expected: Fraction, given: Fraction, *, is_decimal: bool) -> bool:
    return expected == given or (is_decimal and round(expected, DECIMALS) == round(given, DECIMALS))


def _numeric(reference: str, answer: str) -> Verdict:
    expected, given = parse_number(reference), first_number(answer)
    return "correct" if expected is not None and expected == given else "wrong"


def _symbolic() -> Callable[[str, str], Verdict]:
    from lightrft_rewards import symbolic

    symbolic.forbid_evaluation()
    return symbolic.same_value
