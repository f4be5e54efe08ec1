"""1 where the last number of the answer is the reference."""

import re
from collections.abc import Sequence

from lightrft_core.data import Score, ScoreRequest
from lightrft_core.sections import RewardSection

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class FinalNumberConfig(RewardSection):
    """Options of `final_number`."""

    near_miss: float = 0.0
    """Score of an answer that holds the right number, but not as its last one."""


class FinalNumberReward:
    """Looks at numbers alone."""

    def __init__(self, config: FinalNumberConfig) -> None:
        self._config = config

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """One score a request."""
        return [self._score(request) for request in requests]

    def _score(self, request: ScoreRequest) -> Score:
        wanted = NUMBER.findall((request.reference or "").replace(",", ""))
        if not wanted:
            return Score(None, reason="the reference holds no number")
        found = NUMBER.findall(request.response.replace(",", ""))
        is_right = bool(found) and float(found[-1]) == float(wanted[-1])
        near = self._config.near_miss if wanted[-1] in found else 0.0
        return Score(1.0 if is_right else near, parts={"accuracy": float(is_right)})
