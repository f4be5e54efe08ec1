"""The page of `lightrft plugins show`: what a component is and every option that it has, as data and as text."""

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from lightrft_core.cli.type_names import bounds_of, default_of, type_name
from lightrft_core.descriptors import Algorithm, Component, ModelComponent, RewardComponent
from lightrft_core.errors import UserError
from lightrft_core.kinds import BY_NAME
from lightrft_core.plugin_messages import bad_plugin, unknown_anywhere
from lightrft_core.plugins import Offer, Plugins
from lightrft_core.requirements import unmet
from lightrft_core.sections import Section

Page = dict[str, Any]  # Any: JSON
_TEXT_FROM, _LEAST_ROOM = 15, 40  # columns: where texts begin, and what they have at least


def pages_for(name: str, plugins: Plugins) -> list[Page]:
    """A page for each component that `KIND.NAME`, `NAME` or a plugin's name means. Raises `UserError` for none."""
    where = "lightrft plugins show"
    kind, _, short = name.partition(".")
    if short and kind in BY_NAME:
        return [_page(plugins.find_offer(kind, short, where=where), plugins)]
    plugin, _, last = name.rpartition(":")
    offers = [o for o in plugins.all_offers if o.descriptor.name == last and plugin in ("", o.plugin)]
    row = plugins.row(name)
    if not offers and row is not None:
        offers = [offer for offer in plugins.all_offers if offer.plugin == row.name]
        if not offers:
            raise UserError(bad_plugin(row) if row.problem else f"plugin {row.title} offers nothing", where=where)
    if not offers:
        raise unknown_anywhere(name, where, plugins.rows, plugins.all_offers)
    return [_page(offer, plugins) for offer in offers]


def render(page: Page, width: int | None = None) -> str:
    """A page as text; with a width its sentences are broken into lines."""
    lines = [f"{page['kind']} {page['name']}  (plugin {page['plugin']})", page["summary"], ""]
    for key in (
        "when",
        "formula",
        "example",
        "paper",
        "model_types",
        "needs",
        "provides",
        "requires",
        "missing",
        "target",
    ):
        value = page.get(key)
        if value:
            text = ", ".join(value) if isinstance(value, list) else str(value)
            lines.append(f"  {key.replace('_', ' '):<12} {_indented(text, width)}")
    lines.append(f"  {'use':<12} {_indented(page['use'], None)}")
    if "sections" in page:
        lines += ["", "sets", *(f"  {key}: {json.dumps(value)}" for key, value in page["sections"].items())]
    if page.get("options"):
        lines += ["", "options", *_option_lines(page["options"])]
    elif page.get("error"):
        lines += ["", page["error"]]
    return "\n".join(lines)


def _indented(text: str, width: int | None) -> str:
    """Later lines stand below the first one."""
    lines = text.strip().splitlines()
    if width is not None:
        room = max(width - _TEXT_FROM, _LEAST_ROOM)
        lines = [part for line in lines for part in textwrap.wrap(line, room, break_long_words=False)]
    return ("\n" + " " * _TEXT_FROM).join(lines)


def _option_lines(options: list[Page]) -> Iterator[str]:
    width = max(len(option["name"]) for option in options)
    for option in options:
        facts = "; ".join(fact for fact in (option["type"], option["bounds"]) if fact)
        default = "required" if option["required"] else f"default {option['default']}"
        yield f"  {option['name']:<{width}}  {facts}; {default}"
        if option["doc"]:
            yield f"  {'':<{width}}  {option['doc']}"


def _page(offer: Offer, plugins: Plugins) -> Page:
    descriptor = offer.descriptor
    page: Page = {
        "kind": offer.kind,
        "name": descriptor.name,
        "plugin": offer.plugin,
        "summary": descriptor.summary,
        "use": _use(offer),
        "requires": list(descriptor.requires),
        "missing": list(unmet(descriptor.requires)),
    }
    if isinstance(descriptor, Algorithm):
        return page | {
            "when": descriptor.when,
            "formula": descriptor.formula,
            "paper": descriptor.paper,
            "sections": json.loads(json.dumps(dict(descriptor.sections), default=str)),
        }
    page["target"] = descriptor.target
    return page | _component_facts(offer, descriptor, plugins) if isinstance(descriptor, Component) else page


def _component_facts(offer: Offer, component: Component, plugins: Plugins) -> Page:
    facts: Page = {
        "formula": component.formula,
        "paper": component.paper,
        "needs": sorted(component.needs),
        "provides": sorted(component.provides),
    }
    if isinstance(component, ModelComponent):
        facts["model_types"] = list(component.model_types)
    if isinstance(component, RewardComponent):
        facts["is_isolated"] = component.is_isolated
        facts["example"] = component.example
    try:
        config = plugins.config_class(offer.kind, component)
    except UserError as error:
        return facts | {"options": [], "error": str(error)}
    return facts | {"options": list(_options(config))}


def _options(config: type[Section], prefix: str = "") -> Iterator[Page]:
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _options(field.annotation, f"{prefix}{name}.")
        else:
            yield _option(prefix + (field.alias or name), field)


def _option(name: str, field: FieldInfo) -> Page:
    return {
        "name": name,
        "type": type_name(field.annotation),
        "required": field.is_required(),
        "default": None if field.is_required() else default_of(field),
        "bounds": bounds_of(field),
        "doc": " ".join((field.description or "").split()),
    }


def _use(offer: Offer) -> str:
    kind, name = BY_NAME[offer.kind], offer.descriptor.name
    if offer.kind == "algorithm":
        return f"algorithm: {name}"
    if offer.kind == "command":
        return f"lightrft {name}"
    if offer.kind == "patch":
        return "applied to every model that it matches; `model: {patches_off: [" + name + "]}` leaves it out"
    return f"{kind.section}: [{{use: {name}}}]" if kind.count == "many" else f"{kind.section}: {{use: {name}}}"
