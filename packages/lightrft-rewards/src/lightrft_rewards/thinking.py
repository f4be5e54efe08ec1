"""The `format` reward: the response has the shape that was asked for, right or wrong."""

import re
from collections.abc import Sequence

from lightrft_core.data import Score, ScoreRequest
from lightrft_core.sections import RewardSection
from pydantic import field_validator

_BOX = "\\boxed{"


class FormatConfig(RewardSection):
    """Shape of a response."""

    pattern: str | None = None
    """A regular expression that must match the whole response; by default `<think>...</think>` before `\\boxed{}`."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value


class FormatReward:
    """1 where the response has the shape, else 0; part `format`."""

    def __init__(self, config: FormatConfig) -> None:
        self._pattern = None if config.pattern is None else re.compile(config.pattern, re.DOTALL)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """One verdict a request."""
        verdicts = [float(self._fits(request.response)) for request in requests]
        return [Score(value, parts={"format": value}) for value in verdicts]

    def _fits(self, response: str) -> bool:
        if self._pattern is not None:
            return self._pattern.fullmatch(response) is not None
        return thinks_then_boxes(response)


def thinks_then_boxes(response: str) -> bool:
    """Whether a closed `<think>...</think>` comes before the first `\\boxed{}`, and the box is closed."""
    opened = response.find("<think>")
    closed = response.find("</think>")
    boxed = response.find(_BOX)
    return 0 <= opened < closed < boxed and "}" in response[boxed:]
