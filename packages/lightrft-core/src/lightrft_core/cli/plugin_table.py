"""The table of `lightrft plugins list`: a row per component, and a row per plugin that has none to offer."""

import sys
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from typing import Any

from lightrft_core.kinds import BY_NAME
from lightrft_core.plugins import Offer, PluginRow, Plugins, State
from lightrft_core.requirements import unmet

HEADINGS = ("NAME", "KIND", "FROM", "STATE", "SUMMARY")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table."""

    name: str
    kind: str
    origin: str
    state: str
    summary: str


def table_lines(plugins: Plugins, kind: str | None = None) -> list[Line]:
    """By kind in the order of the run file, then by name; plugins that offer nothing come last."""
    order = {name: place for place, name in enumerate(BY_NAME)}
    offers = [offer for offer in plugins.all_offers if kind in (None, offer.kind)]
    offers.sort(key=lambda offer: (order[offer.kind], offer.descriptor.name))
    rows = {row.name: row for row in plugins.rows if row.is_usable}
    lines = [_component_line(offer, rows[offer.plugin], plugins) for offer in offers]
    return lines + list(_plugin_lines(plugins))


def as_data(plugins: Plugins, kind: str | None = None) -> dict[str, Any]:  # Any: JSON
    """The same as JSON, with every plugin's row."""
    components = [
        {
            "name": offer.descriptor.name,
            "kind": offer.kind,
            "plugin": offer.plugin,
            "state": _component_state(offer, plugins),
            "summary": offer.descriptor.summary,
            "missing": unmet(offer.descriptor.requires),
        }
        for offer in plugins.all_offers
        if kind in (None, offer.kind)
    ]
    return {"plugins": [asdict(row) for row in plugins.rows], "components": components}


def print_table(plugins: Plugins, kind: str | None = None) -> None:
    """Print it to stdout: coloured and fitted on a terminal, plain and whole elsewhere."""
    lines = table_lines(plugins, kind)
    if sys.stdout.isatty():
        _print_rich(lines)
        return
    cells = [HEADINGS, *(astuple(line) for line in lines)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS) - 1)] + [0]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _component_line(offer: Offer, row: PluginRow, plugins: Plugins) -> Line:
    missing = unmet(offer.descriptor.requires)
    note = f"[needs {', '.join(missing)}] " if missing else ""
    summary = " ".join(offer.descriptor.summary.split())
    return Line(offer.descriptor.name, offer.kind, row.title, _component_state(offer, plugins), note + summary)


def _component_state(offer: Offer, plugins: Plugins) -> str:
    same = [other for other in plugins.offers(offer.kind) if other.descriptor.name == offer.descriptor.name]
    return State.CLASH.value if len(same) > 1 else State.OK.value


def _plugin_lines(plugins: Plugins) -> Iterator[Line]:
    offering = {offer.plugin for offer in plugins.all_offers}
    for row in plugins.rows:
        if not row.is_usable:
            yield Line(row.name, "plugin", row.title, row.state, row.problem)
        elif row.name not in offering:
            yield Line(row.name, "plugin", row.title, row.state, "Offers nothing yet.")


def _print_rich(lines: list[Line]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {State.OK.value: "green", State.DISABLED.value: "dim"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in HEADINGS:
        table.add_column(heading, no_wrap=heading == "STATE", overflow="fold")
    for line in lines:
        cells = [Text(cell) for cell in astuple(line)]
        cells[3].stylize(colours.get(line.state, "red"))
        table.add_row(*cells)
    Console(highlight=False).print(table)
