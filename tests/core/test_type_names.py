"""Options in the words of a run file."""

from enum import Enum
from typing import Annotated, Literal

import pytest
from lightrft_core.cli.type_names import bounds_of, default_of, type_name
from lightrft_core.sections import Fraction, MuonSection, Section
from pydantic import Field


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Example(Section):
    """All forms."""

    share: Fraction | None = None
    tall: Annotated[int, Field(ge=1)] = 3
    pair: tuple[float, float] = (0.9, 0.95)
    words: tuple[str, ...] = Field(default=(), max_length=4)
    colour: Colour = Colour.RED
    table: dict[str, int] = Field(default_factory=dict)
    code: str = Field(default="a", pattern="^[a-z]$")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("share", ("number or null", "null", ">= 0, <= 1")),
        ("tall", ("whole number", "3", ">= 1")),
        ("pair", ("[number, number]", "[0.9, 0.95]", "")),
        ("words", ("list of text", "[]", "at most 4 long")),
        ("colour", ("'red' | 'blue'", "red", "")),
        ("table", ("mapping of text to whole number", "{}", "")),
        ("code", ("text", "a", "of the form ^[a-z]$")),
    ],
)
def test_type_default_and_bounds_are_plain_words(name, expected):
    field = Example.model_fields[name]
    assert (type_name(field.annotation), default_of(field), bounds_of(field)) == expected


def test_options_of_their_own_are_listed():
    assert type_name(MuonSection | None) == "options momentum, nesterov, ns_steps, adjust_lr_fn or null"


def test_a_choice_shows_its_words():
    assert type_name(Literal["auto"] | bool) == "'auto' or true or false"
