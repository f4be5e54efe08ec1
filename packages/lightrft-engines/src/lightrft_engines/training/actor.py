"""The policy's gradient of one update: the objective's shares of all micro-batches, summed over the ranks."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from lightrft_core.data import Batch, LossInputs
from lightrft_core.objective import Objective, Totals
from lightrft_core.protocols import LogProbs, World
from torch import Tensor

from lightrft_engines.training.exchange import Exchange
from lightrft_engines.training.passes import Passes, on_device, required, spare_row, trained_rows
from lightrft_engines.training.roles import Role
from lightrft_engines.training.stepsums import StepSums
from lightrft_engines.training.supervised import Examples


class Actor:
    """The policy as it learns from rollouts, as `Critic` does from returns."""

    def __init__(self, role: Role, passes: Passes, exchange: Exchange, world: World, device: torch.device) -> None:
        self.role = role
        self._passes, self._exchange, self._world, self._device = passes, exchange, world, device
        self.examples: Examples | None = None
        """What the next gradient learns beside the rollouts."""

    def gradient(self, minibatch: Batch, objective: Objective, totals: Totals, sums: StepSums) -> float:
        """Gather it over all ranks; returns its norm and adds the step's metrics."""
        trained = trained_rows(minibatch)
        rows = _with_gradient(minibatch, trained, objective)
        sums.add_zero_rows(minibatch, set(trained) - set(rows))
        share = self._exchange.share(minibatch, rows)
        counted = sums if share.is_lead else None
        parts = self._passes.parts(self.role.module, share.batch)
        losses: list[Callable[[], Tensor]] = [partial(self._loss, part, objective, totals, counted) for part in parts]
        if self.examples is not None:
            losses += self.examples.losses(self.role, self._passes, self._exchange, sums, self._world)
        losses += [self._spare_loss] * (self._passes.num_passes(len(losses)) - len(losses))
        norm = self.role.gather(losses)
        if self.role.scale is not None:
            sums.add({"loss_scale": (self.role.scale.used, 1.0)})
        return norm

    def _loss(self, part: Batch, objective: Objective, totals: Totals, sums: StepSums | None) -> Tensor:
        share = partial(_share, on_device(part, self._device), objective, totals, sums)
        return self._passes.loss(self.role, part, share, entropy=True)

    def _spare_loss(self) -> Tensor:
        found = self._passes.forward(self.role, spare_row(), layout=self._passes.layout)
        return cast(Tensor, found.logprobs_BT.sum() * 0.0)


def _share(
    part: Batch, objective: Objective, totals: Totals, sums: StepSums | None, rows: Sequence[int], found: LogProbs
) -> Tensor:
    """Of some rows of a part; adds their metrics."""
    part = part.rows(rows)
    own_BT = found.logprobs_BT.detach()
    old_BT = own_BT if part.old_logprobs_BT is None else part.old_logprobs_BT
    entropy_BT = found.entropy_BT
    if entropy_BT is not None and not objective.needs_entropy:
        entropy_BT = entropy_BT.detach()
    inputs = LossInputs(
        logprobs_BT=found.logprobs_BT,
        old_logprobs_BT=old_BT,
        advantages_BT=required(part.advantages_BT, "advantages_BT"),
        mask_BT=part.mask_BT,
        ref_logprobs_BT=part.ref_logprobs_BT,
        entropy_BT=entropy_BT,
    )
    share, metrics = objective.share(inputs, totals, part.weights_BT)
    if sums is not None:
        sums.add(metrics)
        sums.gap.add(part.engine_logprobs_BT, old_BT, part.mask_BT)
    return cast(Tensor, share)


def _with_gradient(batch: Batch, rows: list[int], objective: Objective) -> list[int]:
    """Leave out rows whose gradient is promised to be zero."""
    is_alone = objective.kl is None and not objective.needs_entropy
    if not (objective.zero_without_advantage and is_alone) or batch.advantages_BT is None:
        return rows
    has_advantage = ((batch.advantages_BT != 0) & batch.mask_BT).any(-1).tolist()
    return [row for row in rows if has_advantage[row]]
