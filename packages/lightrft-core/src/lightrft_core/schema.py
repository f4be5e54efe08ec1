"""A JSON schema of run files for editors: every section, every installed component told apart by its `use`."""

from lightrft_core.descriptors import Component
from lightrft_core.errors import UserError
from lightrft_core.kinds import KINDS, Kind
from lightrft_core.plugins import Offer, Plugins
from lightrft_core.protocols import Json
from lightrft_core.resolve import CORE_SECTIONS
from lightrft_core.sections import Section

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_PATCHES_OFF = {"type": "array", "items": {"type": "string"}, "description": "Patches to leave out, by name."}


def run_file_schema(plugins: Plugins) -> dict[str, Json]:
    """The schema. Components whose options cannot be imported are named, their options left open."""
    definitions: dict[str, Json] = {}
    properties: dict[str, Json] = {
        "plugins": {"type": "array", "items": {"type": "string"}, "description": "Plugin files of this run: ./mine.py."}
    }
    for name, model in CORE_SECTIONS.items():
        properties[name] = _hoisted(model, name, definitions)
    for kind in KINDS:
        if kind.name == "algorithm":
            names = [offer.descriptor.name for offer in plugins.offers(kind.name)]
            properties[kind.section] = {"enum": [*names, None], "description": "A named bundle of other sections."}
        elif kind.count != "none":
            properties[kind.section] = _section(kind, plugins, definitions)
    properties["evaluation"]["properties"]["task"] = properties["task"]
    return {
        "$schema": DRAFT,
        "title": "LightRFT run file",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": definitions,
    }


def _section(kind: Kind, plugins: Plugins, definitions: dict[str, Json]) -> dict[str, Json]:
    offers = plugins.offers(kind.name)
    names = [offer.descriptor.name for offer in offers]
    one: list[Json] = [{"enum": names}]
    one += [_component(kind, offer, plugins, definitions) for offer in offers]
    if kind.count == "optional":
        one.append({"type": "null"})
    schema: dict[str, Json] = {"anyOf": one}
    return {"type": "array", "items": schema} if kind.count == "many" else schema


def _component(kind: Kind, offer: Offer, plugins: Plugins, definitions: dict[str, Json]) -> dict[str, Json]:
    """A reference to the component's own definition, which fixes `use` and refuses other keys."""
    component = offer.descriptor
    key = f"{kind.name}.{offer.plugin}.{component.name}"
    use: dict[str, Json] = {"const": component.name, "description": component.summary}
    try:
        assert isinstance(component, Component)
        schema = _hoisted(plugins.config_class(kind.name, component), key, definitions)
    except UserError:
        schema = {"type": "object", "properties": {}}
    schema["properties"] = {"use": use, **schema.get("properties", {})}
    if kind.name == "model":
        schema["properties"]["patches_off"] = _PATCHES_OFF
    is_implied = component.name == kind.default or kind.name == "model"
    required = [name for name in schema.pop("required", []) if kind.count != "none"]
    schema["required"] = required if is_implied else ["use", *required]
    schema["description"] = component.summary
    definitions[key] = schema
    return {"$ref": f"#/$defs/{key}"}


def _hoisted(model: type[Section], prefix: str, definitions: dict[str, Json]) -> dict[str, Json]:
    """A model's schema; the definitions inside it move to the root under names of their own."""
    schema = model.model_json_schema(ref_template=f"#/$defs/{prefix}.{{model}}")
    for name, inner in schema.pop("$defs", {}).items():
        definitions[f"{prefix}.{name}"] = inner
    return schema
