"""The `numeric` and `gsm8k` rewards: the answer is a number, compared exactly as a fraction."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from lightrft_core.data import Score, ScoreRequest
from lightrft_core.sections import RewardSection
from lightrft_core.verdicts import unscored

from lightrft_rewards.answers import after_thinking, first_number, hash_line, last_boxed, last_number

Find = Literal["auto", "hash", "boxed", "last"]


class NumericConfig(RewardSection):
    """Numbers."""

    find: Find = "auto"
    """Where the number is: the `####` line, the last `\\boxed{}`, the last number; `auto` takes the first that is."""
    tolerance: float = 0.0
    """Largest difference that still counts as equal."""


class NumericReward:
    """1 where the number is the reference's, else 0; part `accuracy`. A reference without a number is unscored."""

    def __init__(self, config: NumericConfig) -> None:
        self._find: Find = config.find
        self._tolerance = Fraction(config.tolerance)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """One verdict a request."""
        return [self._judge(request) for request in requests]

    def _judge(self, request: ScoreRequest) -> Score:
        expected = reference_number(request.reference or "")
        if expected is None:
            return unscored(f"the reference {request.reference!r} holds no number")
        answer = find_number(request.response, self._find)
        is_right = answer is not None and abs(answer - expected) <= self._tolerance
        return Score(float(is_right), parts={"accuracy": float(is_right)})


class Gsm8kConfig(RewardSection):
    """GSM8K's own rule."""


class Gsm8kReward(NumericReward):
    """The number on the last `#### n` line, and nowhere else."""

    def __init__(self, config: Gsm8kConfig) -> None:
        super().__init__(NumericConfig(find="hash"))


def reference_number(reference: str) -> Fraction | None:
    """The number of a reference: its `####` line, its box, or itself."""
    return first_number(hash_line(reference) or last_boxed(reference) or reference)


def find_number(response: str, find: Find) -> Fraction | None:
    """The number that a response gives as its answer."""
    text = after_thinking(response)
    places = {"hash": hash_line(text), "boxed": last_boxed(text), "last": last_number(text)}
    chosen = next((found for found in places.values() if found), None) if find == "auto" else places[find]
    return first_number(chosen) if chosen else None
