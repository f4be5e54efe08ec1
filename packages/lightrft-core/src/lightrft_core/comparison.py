"""Several algorithms on one run file, each with several seeds: which runs that takes, and what came of them.

Every run is an ordinary `lightrft train` in a folder of the comparison; what was done before is read from there. An
algorithm is compared as it is: what its bundle sets wins over the run file, and only `--set` wins over both.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

import yaml

from lightrft_core.batch_rule import check_batch
from lightrft_core.descriptors import Algorithm
from lightrft_core.errors import Problems, UserError
from lightrft_core.flat_keys import flat_run_file, flatten
from lightrft_core.frozen import require_trainable
from lightrft_core.kinds import BY_SECTION
from lightrft_core.layers import merge_layers
from lightrft_core.nodes import Node, Plain
from lightrft_core.overrides import parse_set
from lightrft_core.plugins import Plugins
from lightrft_core.recipe_files import find_recipe, shown
from lightrft_core.redaction import redact
from lightrft_core.rundir import RunDir
from lightrft_core.runfile import RunFile, load_plugins, open_run_file
from lightrft_core.yaml_marks import read_yaml

_SHARED_SECTIONS: Final = ("sampler", "strategy", "model", "task", "engine")  # of the run as much as of the algorithm
_EXPECTED_TO_DIFFER: Final = frozenset(("run.name", "run.dir", "run.about"))


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be compared. `own_sets` are `--set` texts for one algorithm alone.

    `seeds` is how many, counted up from the run file's own, or the seeds themselves. Where `keeps_file` is set the run
    file wins over the algorithms, as in `lightrft train`.
    """

    source: str
    algorithms: Sequence[str]
    seeds: int | Sequence[int]
    folder: Path
    sets: Sequence[str] = ()
    own_sets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    keeps_file: bool = False
    num_ranks: int = 1


@dataclass(frozen=True, slots=True)
class Trial:
    """One run: its folder, and what `lightrft train SOURCE` is told with `--set`."""

    algorithm: str
    seed: int
    run_dir: RunDir
    source: Path
    sets: tuple[str, ...]

    @property
    def output(self) -> Path:
        """Where everything that the command prints goes."""
        return self.run_dir.path.parent / f"{self.run_dir.name}.txt"


@dataclass(frozen=True, slots=True)
class Plan:
    """Trials, seed after seed, so that every algorithm has a result early; `given_way` are the run file's keys that an
    algorithm's own settings replace."""

    trials: tuple[Trial, ...]
    given_way: tuple[str, ...]


def plan(question: Question, plugins: Plugins | None = None) -> Plan:
    """Every run of the comparison, checked.

    Raises `Problems` with whatever is wrong with any algorithm's run, and `UserError` where the folder holds runs that
    were made with other settings.
    """
    path = find_recipe(question.source)
    _refuse_repeated(question.algorithms)
    given_way: dict[str, None] = {}
    problems: list[UserError] = []
    trials: list[Trial] = []
    for algorithm in question.algorithms:
        try:
            plugins, sets, replaced = _settings(question, algorithm, path, plugins)
            given_way |= dict.fromkeys(replaced)
            with nullcontext() if question.keeps_file else _told_once():
                trials += _trials(question, algorithm, path, sets, plugins)
        except Problems as found:
            problems += [problem for problem in found.problems if str(problem) not in map(str, problems)]
        except UserError as problem:
            problems.append(problem)
    if problems:
        raise Problems(problems)
    seeds = list(dict.fromkeys(trial.seed for trial in trials))
    return Plan(tuple(sorted(trials, key=lambda trial: seeds.index(trial.seed))), tuple(given_way))


@contextmanager
def _told_once() -> Iterator[None]:
    """`given_way` says what each reading of the file would warn of: options that go with another algorithm."""
    loggers = [logging.getLogger(f"lightrft_core.{name}") for name in ("layers", "undone")]
    before = [found.disabled for found in loggers]
    for found in loggers:
        found.disabled = True
    try:
        yield
    finally:
        for found, was_disabled in zip(loggers, before, strict=True):
            found.disabled = was_disabled


def _refuse_repeated(algorithms: Sequence[str]) -> None:
    if not algorithms:
        raise UserError("names no algorithm.", where="--algorithms", hint="For example --algorithms grpo,gspo.")
    twice = [name for name in algorithms if list(algorithms).count(name) > 1]
    if twice:
        raise UserError(f"names {twice[0]} twice.", where="--algorithms", hint="Name each one once.")


def _settings(
    question: Question, algorithm: str, path: Path, plugins: Plugins | None
) -> tuple[Plugins, list[str], list[str]]:
    """The plugins, the `--set` texts of one algorithm, and the run file's keys that give way."""
    if plugins is None:
        plugins = load_plugins(path, [parse_set(text) for text in question.sets])
    bundle = cast(Algorithm, plugins.find("algorithm", algorithm, where="--algorithms"))
    restored, replaced = ([], []) if question.keeps_file else _own_settings(path, algorithm, bundle, plugins)
    asked = [*question.sets, *question.own_sets.get(algorithm, ())]
    return plugins, [f"algorithm={algorithm}", *restored, *asked], replaced


def _own_settings(path: Path, name: str, bundle: Algorithm, plugins: Plugins) -> tuple[list[str], list[str]]:
    """`--set` texts that put back what the run file overrides of the bundle, and those keys."""
    file = read_yaml(path, shown(path))
    file.fields()["algorithm"] = Node(name, file.origin)
    tree = merge_layers(file, [], plugins, [])
    sets: list[str] = []
    replaced: list[str] = []
    for section, wanted in bundle.sections.items():
        node = tree.fields().get(section)
        touched = _touched(node, section)
        is_whole = section in BY_SECTION and section not in _SHARED_SECTIONS
        if is_whole and touched:
            sets.append(f"{section}={json.dumps(wanted)}")
            replaced += touched
        elif isinstance(wanted, dict):
            keys = [key for key in wanted if f"{section}.{key}" in touched or section in touched]
            keys = list(wanted) if "use" in keys else keys
            sets += [f"{section}.{key}={json.dumps(wanted[key])}" for key in keys]
            replaced += [f"{section}.{key}" for key in keys]
    return sets, replaced


def _touched(node: Node | None, section: str) -> list[str]:
    """The keys of a merged section that the run file wrote; the section itself where it is a list, or switched off."""
    if node is None:
        return []
    if not isinstance(node.value, dict):
        return [section] if node.origin.layer == "file" else []
    return [f"{section}.{name}" for name, child in node.fields().items() if child.origin.layer == "file"]


def _trials(question: Question, algorithm: str, path: Path, sets: Sequence[str], plugins: Plugins) -> list[Trial]:
    folder = question.folder.absolute()
    seeds, trials = question.seeds, list[Trial]()
    if isinstance(seeds, int):
        first = _resolve(path, sets, plugins).run.seed
        seeds = range(first, first + seeds)
    for seed in seeds:
        name = f"{_file_name(algorithm)}-seed{seed}"
        texts = (*sets, f"run.seed={seed}", f"run.dir={folder}", f"run.name={name}")
        run_file = _resolve(path, texts, plugins)
        check_batch(run_file, question.num_ranks)
        require_trainable(run_file)
        trial = Trial(algorithm, seed, RunDir(folder / name), path, texts)
        _check_before(trial, run_file)
        trials.append(trial)
    return trials


def _resolve(path: Path, sets: Sequence[str], plugins: Plugins) -> RunFile:
    return open_run_file(path, [parse_set(text) for text in sets], plugins)[0]


def _file_name(algorithm: str) -> str:
    """`verl/grpo` and `acme:grpo` as part of a folder's name."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in algorithm)


def _check_before(trial: Trial, run_file: RunFile) -> None:
    """Refuse a folder whose run was made with other settings: old and new figures would be taken for one comparison."""
    if not trial.run_dir.run_yaml.is_file():
        return
    before = flat_run_file(trial.run_dir)
    now = flatten(cast(Plain, yaml.safe_load(redact(run_file.to_yaml()))))
    keys = sorted((before.keys() | now.keys()) - _EXPECTED_TO_DIFFER)
    changed = [key for key in keys if before.get(key, "not set") != now.get(key, "not set")]
    if changed:
        key = changed[0]
        more = f" ({len(changed) - 1} more differ)" if len(changed) > 1 else ""
        raise UserError(
            f"was made with {key} {before.get(key, 'not set')}, now asked for is {now.get(key, 'not set')}{more}.",
            where=str(trial.run_dir.path),
            hint="Ask for the same settings to go on with that comparison, or choose another --dir.",
        )
