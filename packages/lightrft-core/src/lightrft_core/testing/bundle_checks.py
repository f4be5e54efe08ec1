"""An algorithm's sections resolve to components that take their options; a command is an app with help."""

from collections.abc import Iterator, Mapping
from typing import Any

from lightrft_core.descriptors import Algorithm, Command, Component
from lightrft_core.kinds import BY_SECTION, Kind
from lightrft_core.sections import (
    CheckpointSection,
    CriticSection,
    EngineGapSection,
    EvaluationSection,
    OptimSection,
    PlotsSection,
    RolloutsSection,
    RunSection,
    Section,
    SelfTestSection,
)
from lightrft_core.testing.results import Case, Check, require

CORE_SECTIONS: Mapping[str, type[Section]] = {
    "run": RunSection,
    "optim": OptimSection,
    "critic": CriticSection,
    "evaluation": EvaluationSection,
    "checkpoint": CheckpointSection,
    "selftest": SelfTestSection,
    "engine_gap": EngineGapSection,
    "rollouts": RolloutsSection,
    "plots": PlotsSection,
}


def sections_exist(case: Case) -> None:
    """Every key is a section of the run file, with a mapping or a list of mappings."""
    sections = _algorithm(case).sections
    require(sections, "an algorithm without sections sets nothing")
    for name, value in sections.items():
        require(name in BY_SECTION or name in CORE_SECTIONS, f"{name!r} is no section of a run file")
        require(name != "algorithm", "an algorithm cannot name another")
        many = name in BY_SECTION and BY_SECTION[name].count == "many"
        fits = isinstance(value, list | tuple) if many else isinstance(value, Mapping)
        require(fits, f"{name} must be a {'list' if many else 'mapping'}")


def sections_resolve(case: Case) -> None:
    """Every `use` is offered by a plugin, and every option exists and is allowed."""
    sections = _algorithm(case).sections
    for name, value in sections.items():
        if name in CORE_SECTIONS:
            CORE_SECTIONS[name].model_validate(dict(value))
    for kind, value in _components(sections):
        where = f"algorithm {case.descriptor.name}"
        component = case.plugins.find(kind.name, str(value.get("use", kind.default)), where=where)
        assert isinstance(component, Component)
        options = {key: item for key, item in value.items() if key != "use"}
        _validate(case.plugins.config_class(kind.name, component), options)


def _validate(config: type[Section], options: Mapping[str, Any]) -> None:  # Any: YAML values
    missing = {name for name, field in config.model_fields.items() if field.is_required()} - set(options)
    if not missing:
        config.model_validate(dict(options))
        return
    unknown = set(options) - set(config.model_fields)
    require(not unknown, f"{config.__name__} has no option {', '.join(sorted(unknown))}")


def _components(sections: Mapping[str, Any]) -> Iterator[tuple[Kind, Mapping[str, Any]]]:  # Any: YAML values
    for name, value in sections.items():
        if name in BY_SECTION:
            for item in value if isinstance(value, list | tuple) else [value]:
                yield BY_SECTION[name], item


def _algorithm(case: Case) -> Algorithm:
    assert isinstance(case.descriptor, Algorithm)
    return case.descriptor


def target_is_an_app(case: Case) -> None:
    """A Typer app."""
    import typer

    assert isinstance(case.descriptor, Command)
    app = case.plugins.target(case.descriptor)
    require(isinstance(app, typer.Typer), f"the target is {type(app).__name__}, expected a typer.Typer")


def help_is_printed(case: Case) -> None:
    """`lightrft NAME --help` ends well."""
    from typer.testing import CliRunner

    assert isinstance(case.descriptor, Command)
    result = CliRunner().invoke(case.plugins.target(case.descriptor), ["--help"])
    require(result.exit_code == 0, f"--help ends with exit code {result.exit_code}: {result.exception!r}")


ALGORITHM: tuple[Check, ...] = (sections_exist, sections_resolve)
COMMAND: tuple[Check, ...] = (target_is_an_app, help_is_printed)
