"""What counts as a score."""

import math
from fractions import Fraction

import pytest
from lightrft_core.data import Score
from lightrft_core.verdicts import as_score, as_scores


@pytest.mark.parametrize(("answer", "value"), [(1, 1.0), (0.5, 0.5), (True, 1.0), (Fraction(1, 4), 0.25)])
def test_numbers_are_scores(answer, value):
    assert as_score(answer) == Score(value)


def test_numpy_and_torch_scalars_are_scores():
    numpy, torch = pytest.importorskip("numpy"), pytest.importorskip("torch")
    assert as_score(numpy.float32(0.5)).value == 0.5
    assert [score.value for score in as_scores(torch.tensor([0.5, 1.0]), 2)] == [0.5, 1.0]
    assert as_score(torch.zeros(3)).value is None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (math.nan, "returned nan"),
        (math.inf, "returned inf"),
        (None, "returned None"),
        ("1", "returned '1' (str), expected a number"),
        (b"1", "returned b'1' (bytes), expected a number"),
        ([1.0], "returned [1.0] (list), expected a number"),
        (1j, "returned 1j (complex), expected a number"),
        (10**400, "returned an integer of 1329 bits, expected a number"),
        (Score(math.nan), "returned nan"),
        (Score(None), "gave no score and no reason"),
        (Score(None, reason="too blurred"), "too blurred"),
        (Score(1.0, parts={"a": None}), "returned None (NoneType), expected a number for its part 'a'"),
    ],
)
def test_anything_else_is_unscored_with_the_reason(answer, reason):
    assert as_score(answer) == Score(None, reason=reason)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([1.0], "returned 1 scores for 2 samples"),
        ([1.0, 1.0, 1.0], "returned 3 scores for 2 samples"),
        (1.0, "returned 1.0 (float), expected a list of 2"),
        (None, "returned None (NoneType), expected a list of 2"),
        ("ab", "returned 'ab' (str), expected a list of 2"),
        ({"a": 1, "b": 2}, "returned {'a': 1, 'b': 2} (dict), expected a list of 2"),
    ],
)
def test_a_call_that_returns_no_list_of_the_right_length_scores_nobody(answers, reason):
    assert as_scores(answers, 2) == [Score(None, reason=reason)] * 2


def test_long_reasons_are_cut():
    assert len(as_score(Score(None, reason="x" * 10_000)).reason) == 500
