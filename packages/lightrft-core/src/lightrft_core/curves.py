"""The run's curves, drawn every so many steps and at its end."""

import logging
from collections.abc import Mapping
from pathlib import Path

from lightrft_core.data import StepReport
from lightrft_core.errors import LightRFTError
from lightrft_core.plots import plot_run
from lightrft_core.protocols import RunStatus
from lightrft_core.rundir import RunDir

logger = logging.getLogger(__name__)


class Curves:
    """A callback that redraws plots/curves.png; a run never ends for a plot that cannot be drawn."""

    def __init__(self, run_dir: RunDir, every: int | None) -> None:
        self._run_dir, self._every = run_dir, every

    def on_step(self, report: StepReport) -> None:
        """Draw where it is time."""
        if self._every is not None and report.step % self._every == 0:
            self._draw()

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """The next drawing shows it."""

    def on_save(self, step: int, path: Path) -> None:
        """Checkpoints are not drawn."""

    def on_end(self, status: RunStatus) -> None:
        """Draw the whole run, however it ended."""
        self._draw()

    def _draw(self) -> None:
        try:
            plot_run(self._run_dir)
        except LightRFTError as error:
            logger.warning("no plot: %s", error)
