"""The `exact` reward: the answer is the reference, letter by letter but for case and space."""

from collections.abc import Sequence
from typing import Literal

from lightrft_core.data import Score, ScoreRequest
from lightrft_core.sections import RewardSection

from lightrft_rewards.answers import after_thinking, hash_line, last_boxed
from lightrft_rewards.normal_form import plain_text


class ExactConfig(RewardSection):
    """Exact match."""

    find: Literal["whole", "line", "boxed", "hash"] = "whole"
    """Where the answer is: all text after the thinking, its last line, the last `\\boxed{}`, or the `####` line."""
    case_sensitive: bool = False
    """Whether `Paris` and `paris` differ."""


class ExactReward:
    """1 where the answer equals the reference, else 0; part `accuracy`."""

    def __init__(self, config: ExactConfig) -> None:
        self._config = config

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """One verdict a request."""
        return [self._judge(request) for request in requests]

    def _judge(self, request: ScoreRequest) -> Score:
        answer = self._find(after_thinking(request.response))
        is_right = answer is not None and self._same(answer, request.reference or "")
        return Score(float(is_right), parts={"accuracy": float(is_right)})

    def _find(self, text: str) -> str | None:
        match self._config.find:
            case "boxed":
                return last_boxed(text)
            case "hash":
                return hash_line(text)
            case "line":
                return text.strip().rpartition("\n")[2]
            case _:
                return text

    def _same(self, answer: str, reference: str) -> bool:
        if self._config.case_sensitive:
            return answer.strip() == reference.strip()
        return plain_text(answer) == plain_text(reference)
