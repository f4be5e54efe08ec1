"""The policy of a checkpoint as a model of its own: no task, no engine, no optimizer state, no devices."""

import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import cast

from lightrft_core import launch
from lightrft_core.assembly import Builder
from lightrft_core.chosen import Chosen
from lightrft_core.contents import EXPORT, Checkpoint
from lightrft_core.descriptors import Component
from lightrft_core.plugins import Plugins
from lightrft_core.protocols import Strategy
from lightrft_core.rundir import RunDir
from lightrft_core.runfile import RunFile
from lightrft_core.setups import first_setup


def export_policy(run_file: RunFile, plugins: Plugins, run_dir: RunDir, checkpoint: Checkpoint, to: Path) -> None:
    """Write it as a Hugging Face folder; the critic too, where the run exports it."""
    if not checkpoint.is_resumable:
        if launch.rank() == 0:
            shutil.copytree(checkpoint.path / EXPORT, to, dirs_exist_ok=True)
        return
    with closing(build_exporter(run_file, plugins, run_dir)) as strategy:
        strategy.load(checkpoint.path)
        strategy.export(to)


def model_at(model: Chosen, path: Path) -> Chosen:
    """The same model adapter with the weights of a folder that was exported."""
    return replace(model, config=model.config.model_copy(update={"path": str(path), "revision": None}))


def build_exporter(run_file: RunFile, plugins: Plugins, run_dir: RunDir) -> Strategy:
    """The policy, and the critic where it is to be exported, in the hands of the run's strategy or of its exporter."""
    builder = Builder(plugins, first_setup(run_file, plugins, run_dir.path))
    setup = builder.setup
    setup.learns = False
    setup.critic = run_file.critic if run_file.needs_values and run_file.critic.export else None
    setup.model = builder.instance(run_file.model)
    return cast(Strategy, builder.instance(exporter_of(run_file.strategy, plugins)))


def exporter_of(chosen: Chosen, plugins: Plugins) -> Chosen:
    """What exports the checkpoints of a strategy: as its options say, else the strategy itself."""
    other = chosen.config.exporter()
    if other is None:
        return chosen
    name, options = other
    component = cast(Component, plugins.find("strategy", name, where="strategy.use"))
    config = plugins.config_class("strategy", component).model_validate(dict(options))
    return replace(chosen, name=name, component=component, config=config, use=name)
