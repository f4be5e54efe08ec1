"""Whether what a component requires is installed: asked of package metadata, so nothing is imported."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version


def unmet(requires: Iterable[str]) -> tuple[str, ...]:
    """The requirements that this environment does not meet, each with what it has: `"vllm>=0.28 (vllm 0.9 is here)"`.

    Raises `packaging.requirements.InvalidRequirement` for a malformed one.
    """
    return tuple(missing for text in requires if (missing := _missing(text)))


def is_requirement(text: str) -> bool:
    """Whether `text` is a well-formed requirement such as `"vllm>=0.28"`."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        Requirement(text)
    except InvalidRequirement:
        return False
    return True


def _missing(text: str) -> str | None:
    from packaging.requirements import Requirement

    requirement = Requirement(text)
    if requirement.marker is not None and not requirement.marker.evaluate():
        return None
    wanted = f"{requirement.name}{requirement.specifier}"
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        return f"{wanted} (not installed)"
    if requirement.specifier.contains(installed, prereleases=True):
        return None
    return f"{wanted} (version {installed} is installed)"
