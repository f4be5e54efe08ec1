"""What must end a run or be warned of: streaks of unscored samples and skipped updates, an engine that is far off."""

import logging
from collections.abc import Mapping
from typing import Final

from lightrft_core.data import StepStats
from lightrft_core.errors import GapTooLarge, RunFailed
from lightrft_core.gap import Gap
from lightrft_core.protocols import Json
from lightrft_core.sections import EngineGapSection, OptimSection, RunSection

_CAUSES: Final = (
    "Usual causes: an engine that computes in other numbers (quantised weights, other kernels), which a `correction` "
    "such as tis weighs; sampling that cuts the distribution (top_p, top_k, min_p); another chat template, temperature "
    "or tokenizer in the engine; weights or caches that are stale."
)
logger = logging.getLogger(__name__)


class Watch:
    """Counts bad steps in a row; its state goes into checkpoints. What it sees is the same on every rank."""

    def __init__(self, run: RunSection, optim: OptimSection, gap: EngineGapSection) -> None:
        self._run, self._optim, self._gap = run, optim, gap
        self._unscored_steps = self._skipped_updates = 0
        self._is_gap_wide = False

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

    def gap(self, gap: Gap | None, step: int) -> None:
        """A step's gap between engine and trainer was measured. Warns where a streak of too large ones begins."""
        limit = self._gap.warn_above
        if gap is None or limit is None:
            return
        is_wide = not gap.mean <= limit
        if is_wide and not self._is_gap_wide:
            logger.warning(
                "step %d: %s, more than engine_gap.warn_above (%g). %s", step, _in_words(gap), limit, _CAUSES
            )
        self._is_gap_wide = is_wide

    def limit(self, gap: Gap | None, step: int) -> None:
        """The gap that a step would train on, before it does. Raises `GapTooLarge`."""
        limit = self._gap.stop_above
        if gap is not None and limit is not None and not gap.mean <= limit:
            raise GapTooLarge(
                f"step {step} was not trained: {_in_words(gap)}, more than {limit:g}",
                where="engine_gap.stop_above",
                hint=f"{_CAUSES} The state before this step is saved.",
            )

    def state_dict(self) -> dict[str, Json]:
        """The counts, and whether a warning was given."""
        counts = {"unscored_steps": self._unscored_steps, "skipped_updates": self._skipped_updates}
        return {**counts, "is_gap_wide": self._is_gap_wide}

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Go on counting."""
        self._unscored_steps, self._skipped_updates = state["unscored_steps"], state["skipped_updates"]
        self._is_gap_wide = state.get("is_gap_wide", False)  # older checkpoints lack it


def _in_words(gap: Gap) -> str:
    return (
        f"engine and trainer differ by {gap.mean:.3g} nats per token on average (99% of the tokens by less than "
        f"{gap.quantile(0.99):.3g}; probabilities by a factor of {gap.error:.3g})"
    )
