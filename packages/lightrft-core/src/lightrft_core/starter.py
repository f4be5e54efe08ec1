"""A commented run file to start from: what must be filled in, and every other option with its default."""

from collections.abc import Iterator
from typing import cast

from pydantic import ValidationError

from lightrft_core.descriptors import Algorithm, Component
from lightrft_core.errors import UserError
from lightrft_core.kinds import BY_NAME, BY_SECTION
from lightrft_core.nodes import Plain
from lightrft_core.plugins import Plugins
from lightrft_core.resolve import CORE_SECTIONS
from lightrft_core.sections import Section
from lightrft_core.yaml_marks import to_yaml

MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
_HEADER = """\
# A LightRFT run. Lines that are commented out show defaults: uncomment to change one.
#   lightrft config check {file}      is everything right?
#   lightrft train {file} --dry-run   what will a step do?
#   lightrft config schema > lightrft.schema.json   completion in editors that know YAML schemas
"""


def starter_text(algorithm: str, plugins: Plugins, file: str = "run.yaml") -> str:
    """The file's text; it loads as it is. Raises `UserError` for an unknown algorithm or a missing package."""
    bundle = cast(Algorithm, plugins.find("algorithm", algorithm, where="--algorithm"))
    lines = [_HEADER.format(file=file), f"algorithm: {algorithm}  # {bundle.summary}"]
    lines += ["", "model:", f"  path: {MODEL}  # a folder or a hub id"]
    lines += ["", "task:", "  path: ./train.jsonl  # rows with `prompt` and the right answer; ./ is this file's folder"]
    lines += _options(plugins, "task", BY_NAME["task"].default or "", {"path": None})
    names = sorted({offer.descriptor.name for offer in plugins.offers("reward")})
    others = f"{', '.join(names)}; explained by `lightrft plugins show NAME`"
    lines += ["", "rewards:", f"  - use: {_plain_reward(plugins)}  # there is: {others}"]
    lines.append("    # weight: 1.0  # Its weight in the sum.")
    for section in ("sampler", "engine", "advantage", "loss", "kl", "strategy"):
        kind = BY_SECTION[section]
        if kind.count == "one" or section in bundle.sections:
            use = _use(bundle, section) or kind.default or ""
            lines += ["", f"{section}:", f"  use: {use}", *_options(plugins, kind.name, use, _given(bundle, section))]
    for section, model in CORE_SECTIONS.items():
        if section != "evaluation" and (section != "critic" or section in bundle.sections):
            lines += ["", f"{section}:", *_commented(model, _given(bundle, section))]
    lines += ["", "# evaluation:", "#   task: {path: ./test.jsonl}", *_commented(CORE_SECTIONS["evaluation"], {})]
    return "\n".join(lines) + "\n"


def _use(bundle: Algorithm, section: str) -> str | None:
    given = bundle.sections.get(section)
    if isinstance(given, dict):
        given = given.get("use")
    return given if isinstance(given, str) else None


def _plain_reward(plugins: Plugins) -> str:
    """The first reward that works without options."""
    for offer in plugins.offers("reward"):
        if isinstance(offer.descriptor, Component):
            try:
                plugins.config_class("reward", offer.descriptor)()
            except (UserError, ValidationError):
                continue
            return offer.descriptor.name
    raise UserError("no reward is installed.", where="rewards", hint="`pip install lightrft-rewards`.")


def _given(bundle: Algorithm, section: str) -> dict[str, Plain]:
    given = bundle.sections.get(section)
    return given if isinstance(given, dict) else {}


def _options(plugins: Plugins, kind: str, use: str, given: dict[str, Plain]) -> list[str]:
    component = plugins.find(kind, use, where=kind)
    assert isinstance(component, Component)
    return list(_commented(plugins.config_class(kind, component), given))


def _commented(model: type[Section], given: dict[str, Plain]) -> Iterator[str]:
    """A line per option; what the algorithm sets is shown with its value, required ones are left to the caller."""
    for name, field in model.model_fields.items():
        about = " ".join((field.description or "").split())
        if name in given and given[name] is not None:
            yield f"  # {name}: {_text(given[name])}  # {about} Set by the algorithm."
        elif not field.is_required():
            yield f"  # {name}: {_text(field.get_default(call_default_factory=True))}  # {about}"


def _text(value: Plain) -> str:
    if isinstance(value, tuple):
        return str(list(value))
    return to_yaml(value).removesuffix("...\n").strip()
