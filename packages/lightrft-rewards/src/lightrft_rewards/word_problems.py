"""Small word problems in GSM8K's form, made from a seed.

The idea: one arithmetic chain over numbers up to 9 (`3*4=12`, then `12-5=7`) is told as a short story, so that the
solution and the answer are known by construction. A problem belongs to the training or to the test split by a hash of
its question, so the two can never share one, whatever the seeds.
"""

import hashlib
import operator
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

Split = Literal["train", "test"]

MAX_PROBLEMS = 50_000
"""The most questions that one call gives; either split holds several times as many distinct ones."""

OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}

_NUMBERS = range(2, 10)
_TEST_SHARE = 10  # one question in ten is held out
_NAMES = ("Tom", "Anna", "Ben", "Mia", "Sam", "Lucy", "Max", "Nora", "Leo", "Ella", "Jack", "Rosa", "Omar", "Lin")
_THINGS = ("apples", "books", "coins", "eggs", "cards", "pens", "shells", "stamps", "toys", "cakes", "plums", "cups")
_PLACES = ("market", "park", "school", "farm", "shop", "beach", "library", "fair")
_STORIES = (
    ("+", "{name} has {a} {things}. {name} gets {b} more at the {place}. How many {things} does {name} have now?"),
    ("-", "{name} buys {a} {things} at the {place} and gives {b} to {friend}. How many {things} are left?"),
    ("*", "{name} fills {a} bags with {b} {things} each at the {place}. How many {things} does {name} have in all?"),
    ("+-", "{name} has {a} {things}, finds {b} more at the {place} and gives {c} to {friend}. How many are left?"),
    ("*+", "{name} buys {a} boxes of {b} {things} at the {place}. {friend} adds {c} more. How many are there now?"),
    ("*-", "{name} takes {a} bags of {b} {things} to the {place} and loses {c}. How many {things} are left?"),
)


@dataclass(frozen=True)
class WordProblem:
    """A question, the lines of its solution and the number asked for."""

    question: str
    steps: tuple[str, ...]
    answer: int

    @property
    def solution(self) -> str:
        """The steps, one a line, and `#### answer` as the last line, as GSM8K writes it."""
        return "\n".join((*self.steps, f"#### {self.answer}"))


def problems(num: int, seed: int, *, split: Split) -> list[WordProblem]:
    """Draw `num` problems with distinct questions; the same arguments give the same list on every machine.

    A longer list starts with the shorter one. Raises `ValueError` for more than `MAX_PROBLEMS`.
    """
    if num > MAX_PROBLEMS:
        raise ValueError(f"{num} word problems asked for; at most {MAX_PROBLEMS} are made")
    drawn = (problem for problem in _stream(random.Random(seed)) if split_of(problem.question) == split)
    return list(islice(_distinct(drawn), num))


def split_of(question: str) -> Split:
    """Tell the split that a question belongs to, from its text alone."""
    digest = hashlib.sha256(question.encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % _TEST_SHARE == 0 else "train"


def chain(operations: str, numbers: list[int]) -> list[tuple[str, int]]:
    """Work `numbers` from left to right: the line and the value of every step. One operation fewer than numbers."""
    value, lines = numbers[0], []
    for sign, number in zip(operations, numbers[1:], strict=True):
        result = OPERATIONS[sign](value, number)
        lines.append((f"{value}{sign}{number}={result}", result))
        value = result
    return lines


def _distinct(stream: Iterator[WordProblem]) -> Iterator[WordProblem]:
    seen: set[str] = set()
    for problem in stream:
        if problem.question not in seen:
            seen.add(problem.question)
            yield problem


def _stream(rng: random.Random) -> Iterator[WordProblem]:
    while True:
        operations, story = rng.choice(_STORIES)
        numbers = [rng.choice(_NUMBERS) for _ in range(len(operations) + 1)]
        lines = chain(operations, numbers)
        answer = lines[-1][1]
        if answer > 0:  # nobody gives away more than they have
            yield WordProblem(_tell(story, numbers, rng), tuple(line for line, _ in lines), answer)


def _tell(story: str, numbers: list[int], rng: random.Random) -> str:
    name, friend = rng.sample(_NAMES, 2)
    values = dict(zip("abc", numbers, strict=False))
    return story.format(name=name, friend=friend, things=rng.choice(_THINGS), place=rng.choice(_PLACES), **values)
