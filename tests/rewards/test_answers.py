"""Finding answers in text and reading them as exact numbers."""

from fractions import Fraction

import pytest
from lightrft_rewards.answers import after_thinking, first_number, hash_line, last_boxed, last_number, parse_number
from lightrft_rewards.normal_form import normal_form, plain_text


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}", "42"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ \{1, 2\} }", r"\{1, 2\}"),
        (r"\boxed {7}", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed{}", ""),
        (r"\boxed{1", None),
        (r"\boxed{1} \boxed{2", None),
        ("boxed{1}", None),
        ("", None),
    ],
)
def test_the_last_box_counts_and_its_braces_balance(text, answer):
    assert last_boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [("a\n#### 42", "42"), ("#### 1\n#### 2 \nx", "2"), ("####42", "42"), ("####\n42", None), ("42", None)],
)
def test_the_last_hash_line_counts(text, answer):
    assert hash_line(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("from 3 to 5.", "5"),
        ("$1,234.50!", "1,234.50"),
        ("is -7", "-7"),
        ("a/b = 3/4", "3/4"),
        ("none", None),
        ("x-5", "-5"),
    ],
)
def test_the_last_number_as_written(text, answer):
    assert last_number(text) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        (" 42. ", 42),
        ("-3", -3),
        ("−3", -3),
        ("+3", 3),
        ("1,234,567", 1234567),
        ("1{,}234", 1234),
        ("$1,234.50", Fraction("1234.5")),
        (r"\$5", 5),
        ("50%", 50),
        (r"50\%", 50),
        ("0.1", Fraction(1, 10)),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        ("**42**", 42),
        ("3/0", None),
        ("1,23", None),
        ("12e9999999", None),
        ("9" * 300, None),
        ("x", None),
        ("1 2", None),
        ("", None),
        ("0x10", None),
        ("١٢", 12),
    ],
)
def test_numbers_are_read_exactly_or_not_at_all(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72 clips", 72),
        ("$5 per day", 5),
        (r"72\text{ clips}", 72),
        ("7 or 8", None),
        (r"5\sqrt{2}", None),
        (r"\sqrt{2}", None),
        ("x^2", None),
        ("2^3", None),
    ],
)
def test_a_number_with_words_counts_only_if_it_is_the_only_one(text, value):
    assert first_number(text) == value


def test_only_what_follows_the_thinking_counts():
    assert after_thinking("<think>#### 1</think> #### 2") == " #### 2"
    assert after_thinking("no thinking") == "no thinking"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (r"\dfrac{1}{2}", r"\frac12"),
        (r"5\sqrt2", r"5 \sqrt{2}"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        (r"90^\circ", "90"),
        (r"12\text{ cm}^2", "12"),
        (r"\text{yes}", "yes"),
        (r"x^{2}", "x^2"),
        (r"$x \leq 3$", r"x\le3"),
        (r"10\%", "10"),
    ],
)
def test_spelling_that_means_the_same_has_one_normal_form(first, second):
    assert normal_form(first) == normal_form(second)


@pytest.mark.parametrize(
    ("first", "second"), [("x+1", "x-1"), ("12", "21"), (r"\frac{1}{2}", r"\frac{2}{1}"), ("A", "a")]
)
def test_what_differs_keeps_differing(first, second):
    assert normal_form(first) != normal_form(second)


def test_plain_text_ignores_case_space_and_quotes():
    assert plain_text(' "New  York." ') == plain_text("new york")
