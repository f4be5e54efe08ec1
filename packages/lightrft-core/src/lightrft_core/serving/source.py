"""From what a user names - a run, a checkpoint, a model - to an engine that serves it.

A checkpoint is first exported as a model folder of its own, so that every engine reads it as it reads any model, and no
trainer holds weights beside the engine's.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from lightrft_core import launch
from lightrft_core.assembly import Builder
from lightrft_core.chosen import Chosen
from lightrft_core.command_line import resolve_command_line
from lightrft_core.errors import Problems, UserError
from lightrft_core.exporting import export_policy, model_at
from lightrft_core.frozen import is_frozen
from lightrft_core.kinds import BY_NAME
from lightrft_core.layers import merge_layers
from lightrft_core.model_choice import Limits, limits
from lightrft_core.nodes import Node, Origin
from lightrft_core.overrides import Override, parse_set, section_of
from lightrft_core.plugins import Plugins
from lightrft_core.protocols import Engine, ModelAdapter
from lightrft_core.resolve import Resolver, keys_elsewhere
from lightrft_core.rundir import RunDir
from lightrft_core.sections import ModelSection, SamplerSection
from lightrft_core.session import checkpoint_of, find_run
from lightrft_core.setups import setup_for
from lightrft_core.validation import Report

MAX_NEW_TOKENS = 512  # where neither a client nor a run says


@dataclass(frozen=True, slots=True)
class Source:
    """What is served. `max_new_tokens` is a run's own."""

    name: str
    adapter: ModelAdapter
    engine: Engine
    max_new_tokens: int
    limits: Limits


@dataclass(frozen=True, slots=True)
class Wanted:
    """Parts that are chosen and not built."""

    name: str
    plugins: Plugins
    model: Chosen
    engine: Chosen
    patches_off: tuple[str, ...]
    max_new_tokens: int = MAX_NEW_TOKENS


@contextmanager
def open_source(what: str, *, step: int | None, engine: str | None, sets: Sequence[str]) -> Iterator[Source]:
    """A run (folder or name; `step` picks the checkpoint), a checkpoint's folder, or a model's folder or hub id.

    `sets` are keys of `model` and `engine`. `UserError` for what is none of these, or cannot be served.
    """
    if launch.world_size() > 1:
        raise UserError("one process serves.", where=what, hint="Start it without torchrun.")
    texts = [*sets, *([f"engine.use={engine}"] if engine is not None else [])]
    _refuse_other_sections(texts)
    run_dir, step = _run_and_step(what, step)
    with tempfile.TemporaryDirectory(prefix="lightrft-") as scratch:
        wanted = _of_model(what, texts) if run_dir is None else _of_run(run_dir, step, texts, Path(scratch))
        section = cast(ModelSection, wanted.model.config)
        builder = Builder(wanted.plugins, setup_for(section, wanted.patches_off, wanted.plugins, Path(scratch)))
        builder.setup.learns = False
        builder.setup.model = adapter = builder.instance(wanted.model)
        with closing(cast(Engine, builder.instance(wanted.engine))) as built:
            yield Source(wanted.name, adapter, built, wanted.max_new_tokens, limits(section.path))


def _run_and_step(what: str, step: int | None) -> tuple[RunDir | None, int | None]:
    run_dir, folder = find_run(what), Path(what).resolve()
    number = folder.name.removeprefix("step_")
    if run_dir is None and folder.parent.name == "checkpoints" and number.isdecimal():
        run_dir = find_run(str(folder.parent.parent))
        if run_dir is not None and step is not None:
            raise UserError(f"has no effect: {what} is one checkpoint.", where="--step", hint="Leave it out.")
        step = int(number) if run_dir is not None else step
    if run_dir is None and step is not None:
        raise UserError(f"has no effect: {what} is not a run.", where="--step", hint="Leave it out.")
    return run_dir, step


def _of_run(run_dir: RunDir, step: int | None, texts: Sequence[str], folder: Path) -> Wanted:
    run_file, plugins = resolve_command_line(str(run_dir.run_yaml), texts, [])
    _refuse_frozen(run_file.engine)
    checkpoint = checkpoint_of(run_dir, step)
    exported = folder / "model"
    export_policy(run_file, plugins, run_dir, checkpoint, exported)
    name = f"{run_dir.path.resolve().name}-step-{checkpoint.step}"
    limit = cast(SamplerSection, run_file.sampler.config).max_new_tokens
    return Wanted(name, plugins, model_at(run_file.model, exported), run_file.engine, run_file.patches_off, limit)


def _of_model(what: str, texts: Sequence[str]) -> Wanted:
    """Nothing but a model and an engine is resolved: there is no run file."""
    plugins, origin = Plugins.load(), Origin("the command line", "default")
    path = str(Path(what).expanduser().resolve()) if Path(what).expanduser().exists() else what
    report = Report(keys_elsewhere)
    overrides = [Override("model.path", path, "MODEL"), *map(parse_set, texts)]
    tree = merge_layers(Node({}, origin), overrides, plugins, report.problems)
    resolver = Resolver(tree, plugins, report, origin)
    model, engine = resolver.single(BY_NAME["model"]), resolver.single(BY_NAME["engine"])
    if report.problems:
        raise Problems(report.problems)
    assert model is not None
    assert engine is not None  # whatever is missing was reported
    _refuse_frozen(engine)
    return Wanted(Path(path).name, plugins, model, engine, resolver.patches_off)


def _refuse_other_sections(texts: Sequence[str]) -> None:
    for override in map(parse_set, texts):
        if section_of(override) not in ("model", "engine"):
            hint = "Set keys of `model` and `engine`."
            raise UserError("has no effect on what is served.", where=override.where, hint=hint)
        if override.key == "model.path":
            raise UserError("the model is the one that you name.", where=override.where, hint="Leave it out.")


def _refuse_frozen(engine: Chosen) -> None:
    if is_frozen(engine):
        raise UserError(
            f"engine {engine.name} has weights of its own, and would not serve this model.",
            where="engine.use",
            hint="Take another, or talk to its server: lightrft chat --url URL.",
        )
