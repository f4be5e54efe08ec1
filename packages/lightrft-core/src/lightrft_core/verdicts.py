"""What a reward may answer, and how it becomes a `Score`: the one place that decides what counts as a number.

Booleans and everything with `__float__` (numpy and torch scalars) are numbers; NaN, infinity, None, text and anything
else is *unscored* with the reason, never 0.
"""

import math
from collections.abc import Iterable, Mapping
from typing import SupportsFloat

from lightrft_core.data import Score

MAX_REASON = 500


def unscored(reason: str) -> Score:
    """The verdict that there is none; a long reason is cut."""
    return Score(None, reason=reason if len(reason) <= MAX_REASON else reason[: MAX_REASON - 3] + "...")


def as_score(answer: object) -> Score:
    """One answer of a reward, with every number checked."""
    if isinstance(answer, Score):
        return _checked(answer)
    if answer is None:
        return unscored("returned None")
    value, problem = _number(answer)
    return Score(value) if value is not None else unscored(f"returned {problem}")


def as_scores(answers: object, num: int) -> list[Score]:
    """The answers of one call for `num` requests; all unscored where they are no list of `num`."""
    if isinstance(answers, str | bytes | Mapping) or not isinstance(answers, Iterable):
        return [unscored(f"returned {_shown(answers)}, expected a list of {num}")] * num
    listed = list(answers)
    if len(listed) != num:
        return [unscored(f"returned {len(listed)} scores for {num} samples")] * num
    return [as_score(answer) for answer in listed]


def raised(error: BaseException) -> Score:
    """The verdict of a reward that raised."""
    text = " ".join(str(error).split())
    return unscored(f"raised {type(error).__name__}: {text}" if text else f"raised {type(error).__name__}")


def _checked(score: Score) -> Score:
    if score.value is None:
        return unscored(str(score.reason or "gave no score and no reason"))
    value, problem = _number(score.value)
    if value is None:
        return unscored(f"returned {problem}")
    parts: dict[str, float] = {}
    for name, part in score.parts.items():
        number, problem = _number(part)
        if number is None:
            return unscored(f"returned {problem} for its part {name!r}")
        parts[str(name)] = number
    return Score(value, parts=parts)


def _number(answer: object) -> tuple[float | None, str]:
    """The finite number, or None and what it is instead."""
    if isinstance(answer, str | bytes) or not isinstance(answer, SupportsFloat):
        return None, f"{_shown(answer)}, expected a number"
    try:
        value = float(answer)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # tensors of many elements, huge integers
        return None, f"{_shown(answer)}, expected a number"
    return (value, "") if math.isfinite(value) else (None, f"{value}")


def _shown(answer: object) -> str:
    if isinstance(answer, int) and answer.bit_length() > 1000:
        return f"an integer of {answer.bit_length()} bits"
    text = repr(answer)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(answer).__name__})"
