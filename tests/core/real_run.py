"""A small run of the quickstart model, built in this process."""

from dataclasses import dataclass
from pathlib import Path

from lightrft_core.assembly import Core, build_core, build_trainer
from lightrft_core.command_line import resolve_command_line
from lightrft_core.plugins import Plugins
from lightrft_core.rundir import RunDir
from lightrft_core.runfile import RunFile
from lightrft_core.stopping import Stopper
from lightrft_core.trainer import Trainer

SMALL = (
    "sampler.group_size=2",
    "sampler.prompts_per_step=2",
    "sampler.max_new_tokens=12",
    "run.steps=2",
    "run.seed=5",
    "optim.batch_size=null",
    "strategy.micro_batch_size=null",
    "evaluation.every=null",
    "evaluation.task.num=4",
    "checkpoint.every=null",
)


def small_run_file(*sets: str, source: str = "quickstart") -> tuple[RunFile, Plugins]:
    """The quickstart recipe, or another run file, at its smallest, with `--set` texts."""
    return resolve_command_line(source, [*SMALL, *sets], [])


@dataclass
class RealRun:
    """A core, and what it was built from."""

    run_file: RunFile
    plugins: Plugins
    run_dir: RunDir
    core: Core

    def trainer(self) -> Trainer:
        return build_trainer(self.core, self.run_file, self.run_dir, Stopper())


def real_run(folder: Path, *sets: str) -> RealRun:
    """Build its model, strategy, engine, rewards and tasks."""
    run_file, plugins = small_run_file(*sets)
    run_dir = RunDir(folder)
    return RealRun(run_file, plugins, run_dir, build_core(run_file, plugins, run_dir, 1))


def disturb(run: RealRun, size: float = 0.02) -> None:
    """Move the policy away from the reference; the embedded engine serves it in place."""
    import torch

    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in run.core.strategy.policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws) * size)
