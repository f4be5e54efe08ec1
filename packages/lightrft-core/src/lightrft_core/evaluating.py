"""An evaluation by itself: of a run's checkpoint, of the model that a run starts from, or of what an engine has."""

import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import cast

from lightrft_core import launch
from lightrft_core.assembly import Builder, build_core, build_evaluator, evaluator_of
from lightrft_core.contents import EXPORT
from lightrft_core.data import Group
from lightrft_core.errors import UserError
from lightrft_core.exporting import model_at
from lightrft_core.plugins import Plugins
from lightrft_core.protocols import Engine
from lightrft_core.rundir import RunDir
from lightrft_core.runfile import RunFile
from lightrft_core.scoring import RewardSet
from lightrft_core.session import checkpoint_of
from lightrft_core.setups import first_setup

Measured = tuple[Mapping[str, float], list[Group]]


def measure(
    run_file: RunFile, plugins: Plugins, run_dir: RunDir | None, step: int | None
) -> tuple[int, Mapping[str, float], list[Group]]:
    """The step, the metrics and this rank's groups; all ranks call it together. Without a folder it is step 0."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = run_dir or RunDir(Path(scratch))
        checkpoint = None if run_dir is None else checkpoint_of(run_dir, step)
        if checkpoint is not None and not checkpoint.is_resumable:
            run_file = replace(run_file, model=model_at(run_file.model, checkpoint.path / EXPORT))
        with closing(build_core(run_file, plugins, folder, launch.world_size(), train=False)) as core:
            if checkpoint is not None and checkpoint.is_resumable:
                core.strategy.load(checkpoint.path)
                core.engine.update_weights(core.strategy.weights, checkpoint.step)
            found = 0 if checkpoint is None else checkpoint.step
            evaluator = build_evaluator(core, run_file)
            assert evaluator is not None  # the caller looked for its task
            return found, *evaluator.measure(found)


def measure_frozen(run_file: RunFile, plugins: Plugins) -> Measured:
    """The same with the engine's own weights: of the model only its tokenizer is read. One process does it."""
    if launch.world_size() > 1:
        hint = "Start it without torchrun: the engine is asked by one process."
        raise UserError(f"engine {run_file.engine.name} is no rank's own.", where="engine.use", hint=hint)
    assert run_file.evaluation_task is not None  # the caller looked for it
    with tempfile.TemporaryDirectory() as scratch:
        builder = Builder(plugins, first_setup(run_file, plugins, Path(scratch)))
        setup = builder.setup
        setup.learns = False
        setup.model = builder.instance(run_file.model)
        task = builder.instance(run_file.evaluation_task)
        engine = cast(Engine, builder.instance(run_file.engine))
        with closing(engine), closing(RewardSet(run_file.rewards, plugins, setup.world)) as rewards:
            return evaluator_of(run_file, setup, engine, rewards, task).measure(0)
