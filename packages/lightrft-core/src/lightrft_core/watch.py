"""Streaks that must end a run: too many unscored samples, too many skipped updates."""

import logging
from collections.abc import Mapping

from lightrft_core.data import StepStats
from lightrft_core.errors import RunFailed
from lightrft_core.protocols import Json
from lightrft_core.sections import OptimSection, RunSection

logger = logging.getLogger(__name__)


class Watch:
    """Counts bad steps in a row; its state goes into checkpoints. What it sees is the same on every rank."""

    def __init__(self, run: RunSection, optim: OptimSection) -> None:
        self._run, self._optim = run, optim
        self._unscored_steps = self._skipped_updates = 0

    def scores(self, measured: Mapping[str, float]) -> None:
        """A step's samples were scored. Raises `RunFailed` after too many steps with too many unscored ones."""
        share = measured.get("reward/unscored_fraction", 0.0)
        self._unscored_steps = self._unscored_steps + 1 if share > self._run.max_unscored_fraction else 0
        if self._unscored_steps >= self._run.unscored_patience:
            raise RunFailed(
                f"{share:.0%} of the samples could not be scored, in {self._unscored_steps} steps in a row",
                where="rewards",
                hint="The reasons are in the warnings above and in log.txt. Mend the reward, or raise "
                "run.max_unscored_fraction.",
            )

    def update(self, stats: StepStats, step: int) -> None:
        """An optimizer step of `step` was tried. Raises `RunFailed` after too many skipped ones in a row.

        Those that only lowered a loss scale neither count nor end the row.
        """
        if stats.skipped is None:
            self._skipped_updates = 0
            return
        if stats.rescaled:
            logger.info("step %d: update skipped, %s", step, stats.skipped)
            return
        self._skipped_updates += 1
        logger.warning("step %d: update skipped, %s", step, stats.skipped)
        if self._skipped_updates >= self._optim.max_skipped_steps:
            raise RunFailed(
                f"{self._skipped_updates} optimizer steps in a row were skipped: {stats.skipped}",
                where="optim",
                hint="Lower optim.lr or optim.max_grad_norm, or check the rewards' scale. Checkpoints are intact.",
            )

    def state_dict(self) -> dict[str, Json]:
        """Both counts."""
        return {"unscored_steps": self._unscored_steps, "skipped_updates": self._skipped_updates}

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Go on counting."""
        self._unscored_steps, self._skipped_updates = state["unscored_steps"], state["skipped_updates"]
