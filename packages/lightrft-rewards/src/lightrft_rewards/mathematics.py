"""The `math` reward, and the recipes `gsm8k_rule` and `geo3k_rule`: the last `\\boxed{}` against the reference."""

from collections.abc import Sequence
from typing import Literal

from lightrft_core.data import Score, ScoreRequest
from lightrft_core.sections import Fraction, RewardSection
from lightrft_core.verdicts import unscored

from lightrft_rewards.answers import after_thinking, hash_line, last_boxed, last_number
from lightrft_rewards.grader import MathGrader
from lightrft_rewards.thinking import thinks_then_boxes


class MathConfig(RewardSection):
    """Mathematical answers."""

    find: Literal["boxed", "auto"] = "boxed"
    """Where the answer is: in the last `\\boxed{}` only, or else on the `####` line, or else the last number."""
    memory_gb: float | None = 2.0
    """Address space that a worker may take, in GiB."""


class MathReward:
    """1 where the answer equals the reference, else 0; parts `accuracy` and `unparsed`."""

    def __init__(self, config: MathConfig) -> None:
        self._find = config.find
        self._grader = MathGrader(is_symbolic=True)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """One verdict a request; unscored where the reference cannot be read."""
        return [self._judge(request) for request in requests]

    def _judge(self, request: ScoreRequest) -> Score:
        text = after_thinking(request.response)
        answer = last_boxed(text)
        if answer is None and self._find == "auto":
            answer = hash_line(text) or last_number(text)
        return graded(self._grader, request.reference or "", answer)


class RuleConfig(RewardSection):
    """A recipe: accuracy, and a little for the format."""

    format_weight: Fraction = 0.1
    """Weight of the format; accuracy has the rest."""
    memory_gb: float | None = 2.0
    """Address space that a worker may take, in GiB."""


class RuleReward:
    """`0.9 * accuracy + 0.1 * format`, both on the response alone; parts `accuracy` and `format`."""

    is_symbolic = False

    def __init__(self, config: RuleConfig) -> None:
        self._format_weight = config.format_weight
        self._grader = MathGrader(is_symbolic=self.is_symbolic)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """One verdict a request; unscored where the reference cannot be read."""
        return [self._judge(request) for request in requests]

    def _judge(self, request: ScoreRequest) -> Score:
        answer = graded(self._grader, request.reference or "", last_boxed(request.response))
        if answer.value is None:
            return answer
        shape = float(thinks_then_boxes(request.response))
        value = (1 - self._format_weight) * answer.value + self._format_weight * shape
        return Score(value, parts={"accuracy": answer.value, "format": shape})


class Gsm8kRule(RuleReward):
    """LightRFT's `gsm8k_rule`: answers are numbers."""


class Geo3kRule(RuleReward):
    """LightRFT's `geo3k_rule`: answers are numbers, roots, fractions and expressions."""

    is_symbolic = True


def graded(grader: MathGrader, reference: str, answer: str | None) -> Score:
    """The verdict on an answer as a score with parts `accuracy` and `unparsed`; no answer is wrong."""
    try:
        verdict = "wrong" if answer is None else grader.grade(reference, answer)
    except ValueError as error:
        return unscored(str(error))
    value = float(verdict == "correct")
    return Score(value, parts={"accuracy": value, "unparsed": float(verdict == "unparsed")})
