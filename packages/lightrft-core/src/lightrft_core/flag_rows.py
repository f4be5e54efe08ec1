"""What a row of the flag table is, and the usual ways in which a flag becomes keys."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from lightrft_core.errors import UserError
from lightrft_core.nodes import Plain
from lightrft_core.overrides import Override

FlagKind = Literal["text", "path", "paths", "int", "float", "floats", "texts", "switch"]


@dataclass(frozen=True, slots=True)
class GivenFlag:
    """A flag as it was given: its parsed value, and its name as typed, dashes included."""

    value: Plain
    source: str

    def override(self, key: str, value: Plain) -> Override:
        """An override that names this flag as its source."""
        return Override(key, value, self.source)

    def refuse(self, what: str, hint: str = "") -> UserError:
        """An error about this flag."""
        return UserError(what, where=self.source, hint=hint)


Given: TypeAlias = Mapping[str, GivenFlag]  # by the first name of the row
Transform: TypeAlias = Callable[[GivenFlag, Given], Iterable[Override]]


@dataclass(frozen=True, slots=True)
class Refused:
    """A flag that sets nothing; `why` says what to do instead."""

    why: str


@dataclass(frozen=True, slots=True)
class Waits:
    """A flag whose component does not exist yet."""

    component: str


@dataclass(frozen=True, slots=True)
class Always:
    """A switch that asks for what is always so; turning it off is refused."""

    why: str


@dataclass(frozen=True, slots=True)
class Flag:
    """One row: names (old spellings after the first), what it sets, how its value reads, one sentence.

    `off` are names that turn a switch off. `needs` says which component knows the key, for the error where it is not
    chosen. `switch` is the flag without which LightRFT ignored this one.
    """

    names: str
    to: str | Transform | Refused | Waits | Always
    kind: FlagKind
    help: str
    keys: str = ""
    off: str = ""
    needs: str = ""
    switch: str = ""

    @property
    def name(self) -> str:
        """The first name."""
        return self.names.split()[0]

    @property
    def shown_keys(self) -> str:
        """The keys that it sets, for people."""
        return self.to if isinstance(self.to, str) else self.keys


def sets(key: str, on: Plain, off: Plain = ...) -> Transform:
    """A switch that gives `key` a value, and another one where it is turned off."""

    def transform(given: GivenFlag, _: Given) -> Iterable[Override]:
        value = on if given.value else off
        if value is ...:
            raise given.refuse("has no effect: this is off unless it is asked for.", "Leave it out.")
        return [given.override(key, value)]

    return transform


def mapped(key: str, values: Mapping[Plain, Plain]) -> Transform:
    """The value as it is, save for some that are spelt otherwise in a run file."""

    def transform(given: GivenFlag, _: Given) -> Iterable[Override]:
        value = given.value
        return [given.override(key, values.get(value, value))]

    return transform


def unless_zero(key: str) -> Transform:
    """A number where LightRFT takes 0 for "off"."""

    def transform(given: GivenFlag, _: Given) -> Iterable[Override]:
        if given.value == 0:
            raise given.refuse("has no effect: 0 means off, as without it.", "Leave it out.")
        return [given.override(key, given.value)]

    return transform
