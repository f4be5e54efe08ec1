"""Whether a descriptor says what it must: descriptors are plain dataclasses, and a plugin may put anything in them."""

import re
from collections.abc import Collection, Mapping

from lightrft_core.descriptors import Algorithm, Command, Component, Descriptor, ModelComponent
from lightrft_core.loading import split_target
from lightrft_core.requirements import is_requirement

_WORD = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_NAME = re.compile(_WORD)
_BUNDLE = re.compile(rf"({_WORD}/)?{_WORD}")  # an algorithm may name the library that it takes after: verl/grpo


def descriptor_problem(descriptor: Descriptor) -> str | None:
    """What is wrong with it, in a few words; None where nothing is."""
    pattern = _BUNDLE if isinstance(descriptor, Algorithm) else _NAME
    if not isinstance(descriptor.name, str) or not pattern.fullmatch(descriptor.name):
        return "a name is made of letters, digits, '_', '-' and '.'"
    if not isinstance(descriptor.summary, str) or not descriptor.summary.strip():
        return "`summary` must be a sentence"
    return _requires_problem(descriptor.requires) or _own_problem(descriptor)


def _own_problem(descriptor: Descriptor) -> str | None:
    if isinstance(descriptor, Algorithm):
        return None if isinstance(descriptor.sections, Mapping) else "`sections` must be a mapping"
    if isinstance(descriptor, Command):
        return _target_problem("target", descriptor.target)
    return _component_problem(descriptor)


def _component_problem(component: Component) -> str | None:
    problem = _target_problem("target", component.target)
    if problem is None and component.config is not None:
        problem = _target_problem("config", component.config)
    words: dict[str, Collection[str]] = {"needs": component.needs, "provides": component.provides}
    if isinstance(component, ModelComponent):
        words["model_types"] = component.model_types
    return problem or next((text for key, value in words.items() if (text := _words_problem(key, value))), None)


def _target_problem(key: str, target: object) -> str | None:
    try:
        split_target(target if isinstance(target, str) else repr(target))
    except ValueError as error:
        return f"`{key}` {error}"
    return None


def _words_problem(key: str, value: object) -> str | None:
    is_words = isinstance(value, Collection) and not isinstance(value, str) and all(isinstance(w, str) for w in value)
    return None if is_words else f"`{key}` must hold words, as in {{'logprobs'}}, not {value!r}"


def _requires_problem(requires: object) -> str | None:
    problem = _words_problem("requires", requires)
    if problem is not None or not isinstance(requires, Collection):
        return problem
    bad = [text for text in requires if not is_requirement(text)]
    return f"`requires` holds {bad[0]!r}, which is no requirement such as 'vllm>=0.28'" if bad else None
