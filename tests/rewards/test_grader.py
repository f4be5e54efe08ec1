"""Equality of mathematical answers, and the limits before anything is parsed."""

import subprocess
import sys

import pytest
from lightrft_rewards.grader import MathGrader
from lightrft_rewards.limits import limit_broken

pytest.importorskip("math_verify")


@pytest.fixture(scope="module")
def grader() -> MathGrader:
    return MathGrader(is_symbolic=True)


@pytest.mark.parametrize(
    ("reference", "answer", "verdict"),
    [
        ("42", "42.0", "correct"),
        ("42", "41", "wrong"),
        ("1,000", "1000", "correct"),
        ("5", "x = 5", "correct"),
        ("x=5", "5", "correct"),
        ("x=5", "y=5", "wrong"),
        (r"\frac{1}{2}", "0.5", "correct"),
        (r"\frac12", "1/2", "correct"),
        ("0.333333", "1/3", "correct"),
        ("1/3", "0.33", "wrong"),
        ("5", "5 dollars", "correct"),
        (r"5\sqrt{2}", r"\sqrt{50}", "correct"),
        ("x+1", "1+x", "correct"),
        ("x+1", "x+2", "wrong"),
        ("(x+1)^2", "x^2+2x+1", "correct"),
        (r"\frac{\pi}{2}", r"\pi/2", "correct"),
        (r"\{1,2\}", r"\{2,1\}", "correct"),
        ("(1,2)", "(2,1)", "wrong"),
        (r"e^{x^2}", r"\exp(x^2)", "correct"),
        ("2^{10}", "1024", "correct"),
        ("4", "2**2", "correct"),
        (r"3\frac{1}{2}", "7/2", "correct"),
        (r"\text{Yes}", "yes", "correct"),
        ("no", "yes", "wrong"),
        (r"\boxed{7}", "7", "correct"),
        ("so\n#### 7", "7", "correct"),
        ("4", "", "unparsed"),
        ("4", r"\frac{", "unparsed"),
        ("4", "9^{9^{9^9}}", "unparsed"),
    ],
)
def test_verdicts(grader, reference, answer, verdict):
    assert grader.grade(reference, answer) == verdict


def test_a_reference_that_is_no_mathematics_is_an_error(grader):
    with pytest.raises(ValueError, match="cannot be read as mathematics"):
        grader.grade(r"\frac{", "5x")


def test_without_symbols_numbers_beside_words_still_count():
    plain = MathGrader(is_symbolic=False)
    assert plain.grade("72", "72 clips") == "correct"
    assert plain.grade("72", "7 or 72") == "wrong"
    assert plain.grade(r"\sqrt{4}", "2") == "wrong"


def test_grading_without_symbols_loads_no_sympy():
    code = (
        "import sys; from lightrft_rewards.grader import MathGrader; "
        "MathGrader(is_symbolic=False).grade('1', '2'); print('sympy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("1" * 1025, "characters"),
        ("(" * 25 + "1" + ")" * 25, "nested deeper"),
        ("1" * 257, "digits"),
        ("2^{99999999}", "huge power"),
        ("((9^{99})^{99})^{99}", "huge power"),
        ("9^9^9", "tower"),
        ("9^{9^{9}}", "tower"),
        ("9^{(9)^{9}}", "tower"),
        ("9^{{9}^{9}}", "tower"),
        ("x^{y^{z^2}}", "tower"),
        ("99999999!", "factorial"),
        ("(10^9)!", "factorial"),
        ("9!!", "factorial"),
        (r"\binom{99999999}{5}", "binomial"),
        (r"\sum_{i=1}^{99} i", "still to be done"),
        (r"\int_0^1 x dx", "still to be done"),
        ("__import__('os')", "no mathematics"),
    ],
)
def test_limits_name_what_they_refuse(answer, name):
    assert name in (limit_broken(answer) or "nothing")


@pytest.mark.parametrize(
    "answer",
    [
        "e^{x^2}",
        "2^{10}",
        "x^{10}+x^9+x^8+x^7",
        "5!",
        "n!",
        r"\binom{10}{3}",
        r"\lambda",
        "e^{-x^{2}/2}",
        "(x+1)^{10}",
        "f(g(h(x)))",
    ],
)
def test_limits_let_ordinary_answers_pass(answer):
    assert limit_broken(answer) is None
