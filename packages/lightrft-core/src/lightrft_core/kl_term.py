"""The KL penalty of a run: its estimator, its place, and the controller of its coefficient.

The adaptive controller is that of Ziegler et al. 2019 (arXiv:1909.08593, section 2.2): the coefficient is multiplied by
`1 + clip(KL / target - 1, -0.2, 0.2) * samples / horizon`.
"""

from collections.abc import Callable, Mapping
from typing import cast

from lightrft_core.abilities import RefreshingStrategy
from lightrft_core.data import Batch
from lightrft_core.objective import KLFunction, kl_output, kl_sums
from lightrft_core.protocols import Json, Strategy, World
from lightrft_core.sections import KLSection

MAX_ERROR = 0.2


class KLTerm:
    """A KL estimator with its coefficient; `coef` is what the next step uses. `refresh` renews the reference."""

    def __init__(self, estimate: KLFunction, config: KLSection, refresh: Callable[[], None] = lambda: None) -> None:
        self.estimate, self.config, self._refresh = estimate, config, refresh
        self.coef = config.coef

    @property
    def in_loss(self) -> bool:
        """Whether the objective carries it; otherwise the rewards do."""
        return self.config.place == "loss"

    def penalise(self, batch: Batch, world: World) -> Mapping[str, float]:
        """Subtract it from the per-token rewards.

        Returns `train/kl`, its mean over the trained tokens of all ranks, and its estimator's metrics likewise.
        """
        kl = kl_output(self.estimate(batch.old_logprobs_BT, batch.ref_logprobs_BT))
        penalty_BT = kl.values.masked_fill(~batch.mask_BT, 0.0) * -self.coef
        present = batch.token_rewards_BT
        batch.token_rewards_BT = penalty_BT if present is None else present + penalty_BT
        sums = kl_sums(kl, batch.mask_BT)
        *totals, count = world.sum([*(float(total) for total, _ in sums.values()), float(batch.mask_BT.sum())])
        return {f"train/{name}": total / max(count, 1.0) for name, total in zip(sums, totals, strict=True)}

    def observe(self, kl: float, num_samples: int) -> None:
        """Tell the controller what a step measured; nothing changes without a target."""
        if self.config.target is None:
            return
        error = min(max(kl / self.config.target - 1.0, -MAX_ERROR), MAX_ERROR)
        self.coef *= 1.0 + error * num_samples / self.config.horizon

    def end_step(self, step: int, kl: float | None, num_samples: int) -> None:
        """Rollout step `step` is over, in which this KL was measured: steer, and renew the reference if it is due."""
        if kl is not None:
            self.observe(kl, num_samples)
        if self.config.refresh_every is not None and step % self.config.refresh_every == 0:
            self._refresh()

    def state_dict(self) -> dict[str, Json]:
        """The coefficient."""
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Go on from a saved coefficient."""
        self.coef = float(state["coef"])


def kl_term(estimate: KLFunction, config: KLSection, strategy: Strategy) -> KLTerm:
    """The KL of a run; where it renews its reference, the strategy does that."""
    if config.refresh_every is None:
        return KLTerm(estimate, config)
    return KLTerm(estimate, config, cast(RefreshingStrategy, strategy).refresh_reference)
