"""One plugin at a time: import it, check its API level, register it, call its hooks, check what they yield.

Each of these is guarded by itself, so that whatever a stranger's plugin does becomes a state and a sentence.
"""

import importlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any

import pluggy

from lightrft_core import hookspecs
from lightrft_core.descriptor_checks import descriptor_problem
from lightrft_core.descriptors import Component, Descriptor
from lightrft_core.kinds import KINDS, Kind
from lightrft_core.loading import split_target
from lightrft_core.plugin_sources import Source
from lightrft_core.suggest import nearest

OLDEST_API_LEVEL = 1
HOOKS = {kind.hook: kind for kind in KINDS}


class State(StrEnum):
    """How a plugin fared."""

    OK = "ok"
    DISABLED = "disabled"
    BROKEN = "broken"
    OUTDATED = "outdated"
    TOO_NEW = "too new"
    CLASH = "clash"


@dataclass(frozen=True, slots=True)
class PluginRow:
    """A plugin as `lightrft plugins list` knows it. `components` are (kind, name) pairs, as far as they are known.

    Unless the state is `ok` or `clash`, none of its components can be used and `problem` says why.
    """

    name: str
    distribution: str
    version: str
    state: State
    problem: str = ""
    components: tuple[tuple[str, str], ...] = ()
    is_named_by_path: bool = False

    @property
    def is_usable(self) -> bool:
        """Whether its components can be used, by a qualified name at least."""
        return self.state is State.OK or (self.state is State.CLASH and bool(self.components))

    @property
    def title(self) -> str:
        """Name, distribution and version, for messages."""
        origin = f"{self.distribution} {self.version}".strip()
        return origin if self.name == self.distribution else f"{self.name} ({origin})"


@dataclass(frozen=True, slots=True)
class Offer:
    """A component that a plugin offers; `plugin` is the `acme` of `use: acme:clip`."""

    kind: str
    descriptor: Descriptor
    plugin: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came of one plugin, with the exception behind a problem, if one was."""

    row: PluginRow
    offers: tuple[Offer, ...] = ()
    cause: BaseException | None = None


class PluginProblem(Exception):
    """Why a plugin cannot be used; caught where plugins are loaded."""

    def __init__(self, state: State, problem: str) -> None:
        self.state = state
        super().__init__(problem)


def row_of(source: Source, state: State, problem: str, found: Sequence[Offer] = ()) -> PluginRow:
    """The row of a plugin in that state; `found` is all that is known of its components."""
    components = tuple((offer.kind, offer.descriptor.name) for offer in found)
    return PluginRow(
        source.name, source.distribution, source.version, state, problem, components, source.is_named_by_path
    )


def load_source(source: Source, *, trace: bool) -> Loaded:
    """Load one plugin; every fault of its code becomes a row. `trace` prints each hook call on stderr."""
    found: list[Offer] = []
    try:
        module = _import(source)
        _check_api_level(module)
        hooks = _register(module, source)
    except PluginProblem as problem:
        return _bad(source, problem, found)
    faults = [fault for kind, hook in hooks if (fault := _call(kind, hook, source, found, trace=trace))]
    return _bad(source, faults[0], found) if faults else Loaded(row_of(source, State.OK, "", found), tuple(found))


def _bad(source: Source, problem: PluginProblem, found: Sequence[Offer]) -> Loaded:
    return Loaded(row_of(source, problem.state, str(problem), found), cause=problem.__cause__)


@contextmanager
def _guard(doing: str) -> Iterator[None]:
    """The boundary around a stranger's code: it may raise anything, even `SystemExit`."""
    try:
        yield
    except PluginProblem:
        raise
    except (Exception, SystemExit) as error:
        raise PluginProblem(State.BROKEN, f"{doing}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """One line: the type, the message, and the file and line that raised it."""
    message = " ".join(str(error).split())
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    ours = (str(Path(__file__).parent), importlib.__path__[0], "<frozen")
    frames = [frame for frame in extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    return f"{text} ({frames[-1].filename}:{frames[-1].lineno})" if frames else text


def _import(source: Source) -> Any:  # Any: a stranger's module
    with _guard("it cannot be imported"):
        return source.load()


def _check_api_level(module: Any) -> None:  # Any: a stranger's module
    level = getattr(module, "LIGHTRFT_API", None)
    if type(level) is not int:
        found = "sets no LIGHTRFT_API" if level is None else f"sets LIGHTRFT_API = {level!r}"
        raise PluginProblem(
            State.BROKEN, f"its module {found}; add the line `LIGHTRFT_API = {hookspecs.API_LEVEL}` at its top"
        )
    if level > hookspecs.API_LEVEL:
        here = f"it needs API level {level} and this lightrft-core has {hookspecs.API_LEVEL}"
        raise PluginProblem(State.TOO_NEW, f"{here}; `pip install -U lightrft-core`, or install an older version of it")
    if level < OLDEST_API_LEVEL:
        here = f"it was written for API level {level} and this lightrft-core supports {OLDEST_API_LEVEL} and up"
        raise PluginProblem(State.OUTDATED, f"{here}; install a newer version of it")


def _register(module: Any, source: Source) -> list[tuple[Kind, pluggy.HookImpl]]:  # Any: a stranger's module
    """The plugin's hook implementations, in the order of the kinds. Raises `PluginProblem`."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    _refuse_unmarked(module)
    with _guard("it cannot be registered"):
        manager.register(module, source.name)
        callers = manager.get_hookcallers(module) or []
    for caller in callers:
        if not caller.has_spec():
            raise PluginProblem(State.BROKEN, f"there is no hook {caller.name!r}.{_did_you_mean(caller.name)}")
    if not callers and source.file is not None:
        raise PluginProblem(
            State.BROKEN,
            "the file has no function marked with @hookimpl; a plain reward function needs no entry in `plugins`: name "
            "the file in `rewards` with `use: python`",
        )
    impls = {caller.name: impl for caller in callers for impl in caller.get_hookimpls()}
    for name, impl in impls.items():
        if impl.wrapper or impl.hookwrapper:
            raise PluginProblem(State.BROKEN, f"its hook {name} is a wrapper; hooks here are only collected")
    return [(HOOKS[name], impls[name]) for name in HOOKS if name in impls]


def _refuse_unmarked(module: Any) -> None:  # Any: a stranger's module
    if not isinstance(module, ModuleType):
        return
    for name in HOOKS:
        function = vars(module).get(name)
        is_own = callable(function) and getattr(function, "__module__", None) == module.__name__
        if is_own and getattr(function, f"{hookspecs.PROJECT}_impl", None) is None:
            raise PluginProblem(State.BROKEN, f"its function {name} is not marked with @hookimpl")


def _did_you_mean(name: str) -> str:
    near = nearest(name, HOOKS, limit=1) or nearest(f"{hookspecs.PROJECT}_{name}", HOOKS, limit=1)
    return f" Did you mean {near[0]!r}?" if near else f" There are: {', '.join(HOOKS)}"


def _call(
    kind: Kind, hook: pluggy.HookImpl, source: Source, found: list[Offer], *, trace: bool
) -> PluginProblem | None:
    """Add what the hook yields to `found`, up to a fault, which is returned."""
    start, num_before, fault = time.perf_counter(), len(found), None
    try:
        with _guard(f"its hook {kind.hook} failed"):
            for descriptor in _iterate(hook.function(), kind):
                _check(descriptor, kind, found)
                found.append(Offer(kind.name, _anchored(descriptor, source), source.name))
    except PluginProblem as problem:
        fault = problem
    if trace:
        names = ", ".join(offer.descriptor.name for offer in found[num_before:]) or "nothing"
        seconds = time.perf_counter() - start
        print(f"lightrft: {source.name}: {kind.hook}() -> {names} ({seconds * 1e3:.1f} ms)", file=sys.stderr)
    return fault


def _iterate(result: Any, kind: Kind) -> Iterator[Any]:  # Any: whatever a stranger's hook returned
    if isinstance(result, str) or not isinstance(result, Sequence | Iterator | set | frozenset):
        raise PluginProblem(
            State.BROKEN,
            f"its hook {kind.hook} returned {_article(result)}; yield {kind.descriptor.__name__} objects, or return a "
            "list of them",
        )
    yield from result


def _check(descriptor: Any, kind: Kind, found: Sequence[Offer]) -> None:  # Any: whatever a stranger's hook yielded
    if not isinstance(descriptor, kind.descriptor):
        wanted = kind.descriptor.__name__
        raise PluginProblem(State.BROKEN, f"its hook {kind.hook} yielded {_article(descriptor)}, not a {wanted}")
    problem = descriptor_problem(descriptor)
    if problem is None and any(o.kind == kind.name and o.descriptor.name == descriptor.name for o in found):
        problem = "it was yielded twice"
    if problem is not None:
        raise PluginProblem(State.BROKEN, f"its hook {kind.hook} yielded {descriptor.name!r}: {problem}")


def _article(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _anchored(descriptor: Descriptor, source: Source) -> Descriptor:
    """For a single-file plugin: targets in the file itself, or in files beside it, become absolute paths."""
    if source.file is None or not isinstance(descriptor, Component):
        return descriptor
    config = descriptor.config and _absolute(descriptor.config, source.file)
    return replace(descriptor, target=_absolute(descriptor.target, source.file), config=config)


def _absolute(target: str, file: Path) -> str:
    module, attribute = split_target(target)
    if module == file.stem:
        return f"{file}:{attribute}"
    return f"{(file.parent / module).resolve()}:{attribute}" if module.endswith(".py") else target
