"""All plugins: what is offered, and finding a component by name.

A bad plugin is a row and a warning, never a crash; it becomes an error where a run file uses it. The training loop
never comes here: it holds plain objects.
"""

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightrft_core import plugin_messages
from lightrft_core.descriptors import Command, Component, Descriptor
from lightrft_core.errors import UserError
from lightrft_core.kinds import BY_NAME
from lightrft_core.loading import load_object
from lightrft_core.plugin_loading import Loaded, Offer, PluginRow, State, describe, load_source, row_of
from lightrft_core.plugin_sources import Source, installed_sources, path_sources, split_disabled
from lightrft_core.requirements import unmet
from lightrft_core.sections import Section

__all__ = ["Offer", "PluginRow", "Plugins", "State"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plugins:
    """Every plugin's row and every offer of the usable ones."""

    rows: tuple[PluginRow, ...]
    all_offers: tuple[Offer, ...] = ()

    @classmethod
    def load(cls, files: Sequence[Path] = (), environ: Mapping[str, str] = os.environ) -> "Plugins":
        """Load installed plugins and those that `files` name: `.py` files, or project folders with a pyproject.toml.

        A plugin named by path takes the place of an installed one of the same name. `LIGHTRFT_DISABLE=a,b` leaves
        plugins out before they are imported (`*`: all but LightRFT's own), `LIGHTRFT_TRACE=1` prints every hook call,
        `LIGHTRFT_STRICT=1` raises `UserError` for the first bad plugin. `UserError` also where a path is no plugin.
        """
        strict, trace = (environ.get(f"LIGHTRFT_{name}", "") not in ("", "0") for name in ("STRICT", "TRACE"))
        installed, by_path = installed_sources(), path_sources(files)
        shadowed = [source for source in installed if source.name in {named.name for named in by_path}]
        wanted, disabled = split_disabled([s for s in installed if s not in shadowed] + by_path, environ)
        results = [_without(source, State.DISABLED, "by LIGHTRFT_DISABLE") for source in disabled]
        results += [_without(source, State.DISABLED, "a plugin named by path takes its place") for source in shadowed]
        taken: dict[str, Source] = {}
        for source in wanted:
            first = taken.setdefault(source.name, source)
            results.append(load_source(source, trace=trace) if first is source else _name_taken(source, first))
            _refuse_if(strict, results[-1])
        plugins = cls(_with_clashes(results), tuple(offer for result in results for offer in result.offers))
        plugins._report(strict)
        return plugins

    def offers(self, kind: str) -> tuple[Offer, ...]:
        """All offers of a kind, by plugin: LightRFT's own first. Two may share a name: that is a clash."""
        return tuple(offer for offer in self.all_offers if offer.kind == kind)

    def find(self, kind: str, name: str, *, where: str) -> Descriptor:
        """The component `name`, or `plugin:name`, of a kind.

        Raises `UserError` with `where` for an unknown name, a name that two plugins offer, one of a plugin that cannot
        be used, and one whose requirements are not installed.
        """
        return self.find_offer(kind, name, where=where).descriptor

    def find_offer(self, kind: str, name: str, *, where: str) -> Offer:
        """As `find`, with the plugin that offers it."""
        plugin, _, short = name.rpartition(":")
        found = [o for o in self.offers(kind) if o.descriptor.name == short and plugin in ("", o.plugin)]
        if not found:
            raise plugin_messages.unknown(kind, name, where, self.rows, self.offers(kind))
        if len(found) > 1:
            raise plugin_messages.clash(kind, short, where, found)
        missing = unmet(found[0].descriptor.requires)
        if missing:
            row = self.row(found[0].plugin)
            raise plugin_messages.unmet_requirement(found[0], missing, where, row.distribution if row else "")
        return found[0]

    def config_class(self, kind: str, component: Component) -> type[Section]:
        """The class of its options; the kind's own where it has none. Raises `UserError` naming the plugin."""
        base = BY_NAME[kind].config_base
        if component.config is None:
            return base
        loaded = self._load(component, component.config)
        if isinstance(loaded, type) and issubclass(loaded, base):
            return loaded
        what = f"the options of {kind} {component.name!r} ({component.config}) must extend {base.__name__}"
        raise UserError(what, where=self._origin(component), hint="This is a fault of that plugin.")

    def target(self, component: Component | Command) -> Any:  # Any: a stranger's function or class
        """What it names, imported. Raises `UserError` with plugin and cause where that fails."""
        return self._load(component, component.target)

    def row(self, name: str) -> PluginRow | None:
        """The plugin of that name, or of that distribution."""
        return next((row for row in self.rows if name in (row.name, row.distribution)), None)

    def _load(self, component: Component | Command, target: str) -> Any:  # Any: whatever the plugin named
        try:
            return load_object(target)
        except (Exception, SystemExit) as error:  # the boundary around a stranger's module
            what = f"{component.name!r} cannot be loaded from {target}: {describe(error)}."
            raise UserError(what, where=self._origin(component), hint=plugin_messages.install_hint(error)) from error

    def _origin(self, component: Descriptor) -> str:
        offer = next((offer for offer in self.all_offers if offer.descriptor == component), None)
        row = self.row(offer.plugin) if offer else None
        return f"plugin {row.title}" if row else "a plugin"

    def _report(self, strict: bool) -> None:
        for row in self.rows:
            if row.state in (State.BROKEN, State.OUTDATED, State.TOO_NEW) or (
                row.state is State.CLASH and not row.components
            ):
                logger.warning("%s", plugin_messages.bad_plugin(row))
        for offers in _clashing(self.all_offers).values():
            error = plugin_messages.clash(offers[0].kind, offers[0].descriptor.name, "plugins", offers)
            if strict:
                raise error
            logger.warning("%s", error)


def _without(source: Source, state: State, problem: str) -> Loaded:
    return Loaded(row_of(source, state, problem))


def _name_taken(source: Source, first: Source) -> Loaded:
    problem = (
        f"{first.distribution} has a plugin of the same name; LIGHTRFT_DISABLE={first.distribution} leaves that out"
    )
    return _without(source, State.CLASH, problem)


def _refuse_if(strict: bool, result: Loaded) -> None:
    if strict and result.row.state is not State.OK:
        raise UserError(plugin_messages.bad_plugin(result.row), where="LIGHTRFT_STRICT=1") from result.cause


def _clashing(offers: Iterable[Offer]) -> dict[tuple[str, str], list[Offer]]:
    """Offers that share kind and name with another."""
    by_name: defaultdict[tuple[str, str], list[Offer]] = defaultdict(list)
    for offer in offers:
        by_name[offer.kind, offer.descriptor.name].append(offer)
    return {key: same for key, same in by_name.items() if len(same) > 1}


def _with_clashes(results: Sequence[Loaded]) -> tuple[PluginRow, ...]:
    clashing = _clashing(offer for result in results for offer in result.offers)
    problems: defaultdict[str, list[str]] = defaultdict(list)
    for (kind, name), offers in clashing.items():
        for offer in offers:
            others = ", ".join(other.plugin for other in offers if other is not offer)
            problems[offer.plugin].append(f"{kind} {name!r} is also offered by {others}")
    return tuple(
        replace(result.row, state=State.CLASH, problem="; ".join(problems[result.row.name]))
        if result.offers and result.row.name in problems
        else result.row
        for result in results
    )
