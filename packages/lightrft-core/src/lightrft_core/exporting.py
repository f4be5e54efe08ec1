"""A strategy that does nothing but export: no task, no engine, no optimizer state, and on a machine without devices."""

from dataclasses import replace
from typing import cast

from lightrft_core.assembly import Builder
from lightrft_core.chosen import Chosen
from lightrft_core.descriptors import Component
from lightrft_core.plugins import Plugins
from lightrft_core.protocols import Strategy
from lightrft_core.rundir import RunDir
from lightrft_core.runfile import RunFile
from lightrft_core.setups import first_setup


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
