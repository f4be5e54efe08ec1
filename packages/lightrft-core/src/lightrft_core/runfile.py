"""The run file, resolved: what one run is, every option with its value and where that came from.

Order of precedence: component defaults < algorithm bundle < file < `--set` and flags. Everything that is wrong
is raised at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, cast

from lightrft_core.chosen import Chosen, any_needs
from lightrft_core.errors import Problems, UserError
from lightrft_core.flags import keys_by_flag, waits_by_source
from lightrft_core.layers import absolute_paths, merge_layers
from lightrft_core.no_effect import keys_without_effect
from lightrft_core.nodes import Node, Origin, Plain, from_plain
from lightrft_core.overrides import Override
from lightrft_core.plugins import Plugins
from lightrft_core.recipe_files import find_recipe, shown
from lightrft_core.resolve import CORE_SECTIONS, Resolver, item_label, keys_elsewhere
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
from lightrft_core.undone import settle_undone, undone
from lightrft_core.validation import KeyProblem, Report
from lightrft_core.yaml_marks import read_yaml, to_yaml

__all__ = ["Chosen", "Override", "RunFile", "find_recipe", "load_plugins", "load_run_file", "open_run_file"]

READING_ORDER = (
    *(
        "algorithm",
        "plugins",
        "run",
        "model",
        "task",
        "rewards",
        "shapers",
        "filters",
        "sampler",
        "engine",
        "advantage",
        "critic",
    ),
    *("loss", "kl", "correction", "selectors", "strategy", "optim", "evaluation", "checkpoint", "selftest"),
    *("engine_gap", "rollouts", "plots", "trackers", "callbacks"),
)
SectionT = TypeVar("SectionT", bound=Section)


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """One run. `origins` maps dotted keys to where they were written; a key that is absent has its default."""

    run: RunSection
    optim: OptimSection
    evaluation: EvaluationSection
    checkpoint: CheckpointSection
    selftest: SelfTestSection
    rollouts: RolloutsSection
    plots: PlotsSection
    model: Chosen
    task: Chosen
    sampler: Chosen
    engine: Chosen
    advantage: Chosen
    loss: Chosen
    strategy: Chosen
    critic: CriticSection = field(default_factory=CriticSection)
    engine_gap: EngineGapSection = field(default_factory=EngineGapSection)
    algorithm: str | None = None
    kl: Chosen | None = None
    correction: Chosen | None = None
    rewards: tuple[Chosen, ...] = ()
    shapers: tuple[Chosen, ...] = ()
    filters: tuple[Chosen, ...] = ()
    selectors: tuple[Chosen, ...] = ()
    trackers: tuple[Chosen, ...] = ()
    callbacks: tuple[Chosen, ...] = ()
    evaluation_task: Chosen | None = None
    patches_off: tuple[str, ...] = ()
    plugin_files: tuple[Path, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    def to_yaml(self) -> str:
        """Every option of every section; it loads again to an equal RunFile."""
        return to_yaml(self.to_plain())

    def to_plain(self) -> dict[str, Plain]:
        """The same as plain data, in reading order. Keys that do nothing in this run are left out."""
        whole: dict[str, Plain] = {name: self._section_plain(name) for name in READING_ORDER}
        for key in keys_without_effect(self._sections(), self._present()):
            section, _, name = key.partition(".")
            whole[section].pop(name, None)
        for place, reasons in undone(self.shapers, {"advantage": self.advantage, "kl": self.kl}, self.selectors):
            for name in reasons:
                whole["shapers"][place].pop(name, None)
        if self.evaluation_task is not None:
            whole["evaluation"]["task"] = _entry(self.evaluation_task)
        if self.patches_off:
            whole["model"]["patches_off"] = list(self.patches_off)
        left_out: dict[str, Plain] = {"evaluation": {}, "critic": {}, "algorithm": None, "plugins": []}
        return {name: value for name, value in whole.items() if name not in left_out or value != left_out[name]}

    def _section_plain(self, name: str) -> Plain:
        part = getattr(self, {"plugins": "plugin_files"}.get(name, name))
        if isinstance(part, Section):
            return _dump(part)
        if isinstance(part, Chosen):
            return _entry(part)
        if isinstance(part, tuple):
            return [_entry(item) if isinstance(item, Chosen) else str(item) for item in part]
        return part

    def _sections(self) -> dict[str, Section]:
        core: dict[str, Section] = {name: getattr(self, name) for name in CORE_SECTIONS}
        singles = ("sampler", "advantage", "loss", "kl", "correction", "strategy")
        chosen: dict[str, Chosen | None] = {name: getattr(self, name) for name in singles}
        return core | {name: item.config for name, item in chosen.items() if item is not None}

    @property
    def needs_values(self) -> bool:
        """Whether a named part reads a critic's values."""
        one = (self.advantage, self.loss, self.kl, self.correction)
        return any_needs("values", [*one, *self.selectors, *self.filters, *self.shapers])

    def _present(self) -> dict[str, bool]:
        has_evaluation = self.evaluation_task is not None
        return {"filters": bool(self.filters), "evaluation.task": has_evaluation, "critic": self.needs_values}


def load_run_file(path: Path | None, overrides: Sequence[Override], plugins: Plugins | None = None) -> RunFile:
    """Read, merge, resolve and check a run file. Raises `Problems` with everything that is wrong at once.

    Without `plugins` the installed ones and those that the file names are loaded.
    """
    return open_run_file(path, overrides, plugins)[0]


def load_plugins(path: Path, overrides: Sequence[Override]) -> Plugins:
    """The installed plugins and those that a run file names. Raises `UserError` where one of these is missing."""
    file = read_yaml(path, shown(path))
    absolute_paths(file, path.resolve().parent)
    problems: list[UserError] = []
    files = _plugin_files(file, [_absolute(override) for override in overrides], problems)
    if problems:
        raise Problems(problems)
    return Plugins.load(files)


def open_run_file(
    path: Path | None, overrides: Sequence[Override], plugins: Plugins | None = None, problems: Sequence[UserError] = ()
) -> tuple[RunFile, Plugins]:
    """As `load_run_file`, with the plugins. `problems` found earlier are raised together with the rest."""
    found = list(problems)
    origin = Origin(shown(path)) if path is not None else Origin("the command line", "default")
    try:
        file = Node({}, origin) if path is None else read_yaml(path, origin.source)
    except UserError as problem:
        raise Problems([problem, *found]) from None
    if path is not None:
        absolute_paths(file, path.resolve().parent)
    here = [_absolute(override) for override in overrides]
    plugin_files = _plugin_files(file, here, found)
    if plugins is None:
        try:
            plugins = Plugins.load(plugin_files)
        except UserError as problem:
            raise Problems([*found, problem]) from None
    report = Report(keys_elsewhere, keys_by_flag(), waits_by_source(), found)
    tree = merge_layers(file, here, plugins, report.problems)
    resolver = Resolver(tree, plugins, report, origin)
    resolver.run()
    _refuse_no_effect(resolver)
    if report.problems:
        raise Problems(sorted(report.problems, key=_position))
    return _build(resolver, plugin_files), plugins


def _absolute(override: Override) -> Override:
    node = from_plain(override.value, override.origin)
    absolute_paths(node, Path.cwd())
    return replace(override, value=node.plain())


def _plugin_files(file: Node, overrides: Sequence[Override], problems: list[UserError]) -> tuple[Path, ...]:
    node = file.fields().get("plugins")
    for override in overrides:
        if override.key == "plugins":
            node = from_plain(override.value, override.origin)
    if node is None or node.value is None:
        return ()
    values = node.plain()
    names = [values] if isinstance(values, str) else values
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        hint = "For example plugins: [./my_reward.py]."
        problems.append(KeyProblem("takes a list of files.", key="plugins", origin=node.origin, hint=hint))
        return ()
    missing = [name for name in names if not Path(name).exists()]
    for name in missing:
        hint = "In a run file, ./ is the folder of that file."
        problems.append(KeyProblem(f"{name} does not exist.", key="plugins", origin=node.origin, hint=hint))
    return tuple(Path(name) for name in names if name not in missing)


def _refuse_no_effect(resolver: Resolver) -> None:
    singles = {name: chosen.config for name, chosen in resolver.one.items() if chosen is not None}
    evaluation = resolver.tree.fields().get("evaluation")
    filters = resolver.tree.fields().get("filters")
    present = {
        "filters": filters is not None and bool(filters.items()),
        "evaluation.task": evaluation is not None
        and (task := evaluation.child("task")) is not None
        and task.value is not None,
        "critic": resolver.needs_values(),
    }
    for key, rule in keys_without_effect({**resolver.core, **singles}, present).items():
        child = _node_at(resolver.tree, key)
        is_overruled = _is_from_command_line(resolver.tree, rule.cause)
        if child is None or (child.origin.layer == "file" and is_overruled):
            continue  # what a file says for another case than the command line's is no mistake
        if child.origin.layer in ("file", "command"):
            resolver.report.add(key, child.key_origin, f"has no effect: {rule.reason}")
    _refuse_idle_in_lists(resolver)
    settle_undone(resolver)


def _refuse_idle_in_lists(resolver: Resolver) -> None:
    for section, parts in resolver.many.items():
        items = resolver.tree.fields()[section].items() if section in resolver.tree.fields() else []
        if len(items) != len(parts):
            continue  # one of them was refused, and the others are looked at when that is mended
        for part, node in zip(parts, items, strict=True):
            for option, why in part.config.idle().items():
                child = node.child(option)
                if child is not None and child.origin.layer in ("file", "command"):
                    key = f"{section}[{part.name}].{option}"
                    resolver.report.add(key, child.key_origin, f"has no effect: {why.reason}")


def _is_from_command_line(tree: Node, key: str) -> bool:
    """Whether a value comes from there: itself, by the component that has it as a default, or by an algorithm."""
    cause = _node_at(tree, key) or _node_at(tree, f"{key.partition('.')[0]}.use")
    if cause is not None and cause.origin.layer == "bundle":
        cause = tree.fields().get("algorithm")
    return cause is not None and cause.origin.layer == "command"


def _node_at(tree: Node, key: str) -> Node | None:
    section, _, name = key.partition(".")
    node = tree.fields().get(section)
    return node.child(name) if node is not None and name else node


def _position(problem: UserError) -> tuple[int, int, int]:
    origin = problem.origin if isinstance(problem, KeyProblem) else None
    return (origin is None or origin.layer != "file", origin.line if origin else 0, origin.column if origin else 0)


def _build(resolver: Resolver, plugin_files: tuple[Path, ...]) -> RunFile:
    core, one, many = resolver.core, resolver.one, resolver.many
    algorithm = resolver.tree.fields().get("algorithm")

    def section(name: str, model: type[SectionT]) -> SectionT:
        found = core[name]
        assert isinstance(found, model)
        return found

    def required(name: str) -> Chosen:
        return cast(Chosen, one[name])

    return RunFile(
        run=section("run", RunSection),
        optim=section("optim", OptimSection),
        critic=section("critic", CriticSection),
        evaluation=section("evaluation", EvaluationSection),
        checkpoint=section("checkpoint", CheckpointSection),
        selftest=section("selftest", SelfTestSection),
        engine_gap=section("engine_gap", EngineGapSection),
        rollouts=section("rollouts", RolloutsSection),
        plots=section("plots", PlotsSection),
        model=required("model"),
        task=required("task"),
        sampler=required("sampler"),
        engine=required("engine"),
        advantage=required("advantage"),
        loss=required("loss"),
        strategy=required("strategy"),
        algorithm=str(algorithm.value) if algorithm is not None else None,
        kl=one["kl"],
        correction=one["correction"],
        rewards=many["rewards"],
        shapers=many["shapers"],
        filters=many["filters"],
        selectors=many["selectors"],
        trackers=many["trackers"],
        callbacks=many["callbacks"],
        evaluation_task=resolver.evaluation_task,
        patches_off=resolver.patches_off,
        plugin_files=plugin_files,
        origins=_origins(resolver.tree),
    )


def _origins(tree: Node) -> dict[str, str]:
    """Dotted key -> where it was written, for every value that is not a section or a component."""
    found: dict[str, str] = {}

    def visit(node: Node, key: str) -> None:
        items = node.items()
        if items and all(isinstance(item.value, dict) for item in items):
            for index, item in enumerate(items):
                visit(item, f"{key}[{item_label(item) or index}]")
        elif node.fields():
            for name, child in node.fields().items():
                visit(child, f"{key}.{name}".removeprefix("."))
        elif node.origin.layer != "default":
            found[key] = node.origin.line_position

    visit(tree, "")
    return found


def _dump(section: Section) -> dict[str, Plain]:
    return section.model_dump(mode="json")


def _entry(chosen: Chosen) -> dict[str, Plain]:
    idle = chosen.config.idle()
    options = {name: value for name, value in _dump(chosen.config).items() if name not in idle}
    return {"use": chosen.use or chosen.component.name, **options}
