"""Where a run's time and memory went: into the log after the first step, into the log and to people at the end."""

import logging
from collections.abc import Mapping
from pathlib import Path

from lightrft_core.data import StepReport
from lightrft_core.phases import PhaseTable
from lightrft_core.protocols import RunStatus
from lightrft_core.rank_output import Say

logger = logging.getLogger(__name__)


class PhaseReport:
    """A callback that tells a table of phases."""

    def __init__(self, table: PhaseTable, say: Say) -> None:
        self._table, self._say, self._is_told = table, say, False

    def on_step(self, report: StepReport) -> None:
        """The first step shows whether a run fits, and what it will spend its time on."""
        if not self._is_told:
            self._is_told = True
            logger.info("phases of step %d:\n%s", report.step, "\n".join(self._table.lines()))

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Its phase is in the table."""

    def on_save(self, step: int, path: Path) -> None:
        """Likewise."""

    def on_end(self, status: RunStatus) -> None:
        """All that was measured, however the run ended; nothing where it took no step."""
        if self._is_told:
            lines = self._table.lines()
            logger.info("phases of the run:\n%s", "\n".join(lines))
            for line in lines:
                self._say(line)
