"""What a check is, and what comes of it.

A check is a function of the `Case` whose name reads as a claim. It returns None (or a sentence worth showing), raises
`CheckFailed` where the claim is false, and `Skipped` where it could not be tested: a skip says what it would need.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightrft_core.descriptors import Component, Descriptor
from lightrft_core.errors import EnvironmentUnfit, UserError
from lightrft_core.protocols import Setup
from lightrft_core.sections import Section

if TYPE_CHECKING:
    from lightrft_core.plugins import Plugins

SKIPPED = "skipped: "


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check: its claim, whether it holds, and what to know about it. A skipped one is `ok` and says so."""

    name: str
    ok: bool
    detail: str = ""

    @property
    def is_skipped(self) -> bool:
        """Whether nothing was tested."""
        return self.detail.startswith(SKIPPED)


class CheckFailed(AssertionError):
    """The claim of a check is false."""


class Skipped(Exception):
    """A check could not be made; the text completes "skipped: needs ..."."""


@dataclass(slots=True)
class Case:
    """The component under test. `given` is the caller's own setup, where it passed one."""

    kind: str
    descriptor: Descriptor
    plugins: "Plugins"
    run_dir: Path
    config: Section | None = None
    given: Setup | None = None
    parts: dict[str, Any] = field(default_factory=dict)  # Any: what one check built and later ones use

    @property
    def component(self) -> Component:
        """The descriptor of something that has a target and options."""
        assert isinstance(self.descriptor, Component)
        return self.descriptor

    @property
    def options(self) -> Section:
        """Its validated options."""
        assert self.config is not None, "checks run after the options were validated"
        return self.config

    @property
    def target(self) -> Any:  # Any: a plugin's function or class
        """The function or class itself."""
        return self.plugins.target(self.component)

    def call(self, *args: Any) -> Any:  # Any: as the target's protocol says
        """A function target, with its options."""
        return self.target(*args, config=self.options)


Check = Callable[[Case], str | None]


def require(claim: object, otherwise: str) -> None:
    """Raise `CheckFailed` unless the claim holds."""
    if not claim:
        raise CheckFailed(otherwise)


def run_check(check: Check, case: Case) -> CheckResult:
    """Run one check; whatever a stranger's component raises is its failure."""
    name = check.__name__.replace("_", " ")
    try:
        return CheckResult(name, ok=True, detail=check(case) or "")
    except Skipped as skip:
        return CheckResult(name, ok=True, detail=f"{SKIPPED}needs {skip}")
    except EnvironmentUnfit as lack:
        return CheckResult(name, ok=True, detail=f"{SKIPPED}needs another machine: {lack}")
    except (CheckFailed, UserError) as failure:
        return CheckResult(name, ok=False, detail=str(failure))
    except Exception as error:  # the boundary around a stranger's component: reported, never swallowed
        return CheckResult(name, ok=False, detail=f"raised {type(error).__name__}: {error}")
