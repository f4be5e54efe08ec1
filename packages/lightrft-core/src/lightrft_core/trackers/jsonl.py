"""metrics.jsonl in the run's folder: what `lightrft runs` and the plots read."""

import logging
from collections.abc import Mapping

from lightrft_core.data import StepReport
from lightrft_core.metrics_file import metrics_line
from lightrft_core.protocols import RunStatus, Setup
from lightrft_core.sections import Section

logger = logging.getLogger(__name__)


class JsonlConfig(Section):
    """It has no options."""


class JsonlTracker:
    """Appends a line per step and evaluation, written through at once so that a killed run loses none."""

    def __init__(self, config: JsonlConfig, setup: Setup) -> None:
        self._path = setup.run_dir / "metrics.jsonl"
        self._is_main = setup.world.rank == 0
        self._pending: list[str] = []

    def log(self, report: StepReport) -> None:
        """One step's line."""
        self._append(metrics_line(report.step, {**report.metrics, **report.by_phase()}))

    def log_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """One evaluation's line."""
        self._append(metrics_line(step, metrics))

    def close(self, status: RunStatus) -> None:
        """Write what a full disk held back, if there is room now."""
        self._flush()

    def _append(self, line: str) -> None:
        if self._is_main:
            self._pending.append(line)
            self._flush()

    def _flush(self) -> None:
        """Lines that a full disk refuses are kept for the next try; half a line is taken back."""
        if not self._pending:
            return
        text = "".join(self._pending).encode()
        with self._path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                if file.write(text) != len(text):
                    raise OSError("no space left")
            except OSError as error:
                file.truncate(end)
                logger.warning("%s cannot be written (%s); %d lines wait", self._path, error, len(self._pending))
                return
        self._pending.clear()
