"""`lightrft plugins check`: the conformance kit on every component of a plugin, installed or named by path."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightrft_core.cli.check_setup import options_for, real_setup
from lightrft_core.kinds import BY_NAME
from lightrft_core.plugin_messages import bad_plugin, unknown_anywhere
from lightrft_core.plugins import Offer, PluginRow, Plugins

WHERE = "lightrft plugins check"
Options = Mapping[str, Any]  # Any: YAML values


@dataclass(frozen=True, slots=True)
class Finding:
    """One check of one component, or of the plugin itself (kind `plugin`)."""

    kind: str
    component: str
    check: str
    ok: bool
    detail: str = ""

    def as_data(self) -> dict[str, Any]:  # Any: JSON
        """As JSON."""
        return asdict(self)


def check_plugin(name: str, options: Options | None = None) -> list[Finding]:
    """Check what `name` means: a path, `KIND.NAME`, or an installed plugin. Raises `UserError` where it is nothing.

    `options` are run-file keys for components with options that have no default.
    """
    given = options or {}
    path = Path(name)
    if path.suffix == ".py" or path.is_dir() or "/" in name:
        plugins = Plugins.load([path])
        own = [row for row in plugins.rows if row.is_named_by_path]
        return [finding for row in own for finding in _check_row(row, plugins, given)]
    plugins = Plugins.load()
    kind, _, short = name.partition(".")
    if short and kind in BY_NAME:
        return list(_check_offer(plugins.find_offer(kind, short, where=WHERE), plugins, given))
    row = plugins.row(name)
    if row is None:
        raise unknown_anywhere(name, WHERE, plugins.rows, plugins.all_offers)
    return list(_check_row(row, plugins, given))


def print_results(findings: list[Finding]) -> None:
    """A line per check, and a verdict."""
    widths = [max(len(cell) for cell in column) for column in zip(*map(_cells, findings), strict=True)]
    for finding in findings:
        cells = "  ".join(cell.ljust(width) for cell, width in zip(_cells(finding), widths, strict=True))
        print(f"{cells}  {finding.detail}".rstrip())
    num_failed = sum(not finding.ok for finding in findings)
    num_skipped = sum(finding.detail.startswith("skipped: ") for finding in findings)
    verdict = f"{num_failed} failed" if num_failed else "all passed"
    print(f"{len(findings)} checks, {verdict}{f', {num_skipped} skipped' if num_skipped else ''}.")


def _cells(finding: Finding) -> tuple[str, str, str]:
    return ("ok" if finding.ok else "FAIL", f"{finding.kind}.{finding.component}", finding.check)


def _check_row(row: PluginRow, plugins: Plugins, options: Options) -> Iterator[Finding]:
    if not row.is_usable:
        yield Finding("plugin", row.name, "loads", ok=False, detail=bad_plugin(row))
        return
    offers = [offer for offer in plugins.all_offers if offer.plugin == row.name]
    yield Finding("plugin", row.name, "loads", ok=True, detail="" if offers else "it offers nothing yet")
    for offer in offers:
        yield from _check_offer(offer, plugins, options)


def _check_offer(offer: Offer, plugins: Plugins, options: Options) -> Iterator[Finding]:
    from lightrft_core.testing import check_component

    with tempfile.TemporaryDirectory(prefix="lightrft-check-") as folder:
        setup = real_setup(offer.kind, plugins, Path(folder))
        results = check_component(
            offer.kind, offer.descriptor, plugins, options={**options_for(offer.kind), **options}, setup=setup
        )
    for result in results:
        yield Finding(offer.kind, offer.descriptor.name, result.name, result.ok, " ".join(result.detail.split()))
