"""TensorBoard event files, by default in the run's `tensorboard` folder, written by the tensorboard package alone."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightrft_core.data import StepReport
from lightrft_core.errors import EnvironmentUnfit
from lightrft_core.protocols import RunStatus, Setup
from lightrft_core.sections import Section


class TensorboardConfig(Section):
    """Where the event files go; read them with `tensorboard --logdir FOLDER`."""

    dir: str | None = None
    """Folder that gets a sub-folder named after the run; by default `tensorboard` in the run's own folder."""


class TensorboardTracker:
    """Writes one scalar a metric; flushed every step."""

    def __init__(self, config: TensorboardConfig, setup: Setup) -> None:
        self._writer: Any = None  # a tensorboard writer; the package is optional
        if setup.world.rank != 0:
            return
        try:
            summary = importlib.import_module("tensorboard.summary")
        except ImportError as error:
            raise EnvironmentUnfit(
                f"the tracker needs a package that cannot be imported ({error}).",
                where="trackers[tensorboard]",
                hint="Install it with `pip install 'lightrft-core[tensorboard]'`.",
            ) from None
        folder = Path(config.dir) / setup.run_dir.name if config.dir else setup.run_dir / "tensorboard"
        self._writer = summary.Writer(str(folder))

    def log(self, report: StepReport) -> None:
        """One step's numbers, and by phase its seconds and memory as `seconds/...` and `memory/..._gb`."""
        phases = report.by_phase()
        self._write(report.step, {**report.metrics, **phases})

    def log_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """One evaluation's numbers."""
        self._write(step, metrics)

    def close(self, status: RunStatus) -> None:
        """Flush and end."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()
