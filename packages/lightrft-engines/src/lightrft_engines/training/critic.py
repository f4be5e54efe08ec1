"""The critic as a role of a strategy: it fills values in and learns returns beside the policy, by its own optimizer."""

from dataclasses import dataclass
from functools import partial

from lightrft_core.abilities import ValueAdapter
from lightrft_core.data import Batch
from lightrft_core.objective import Totals
from lightrft_core.protocols import World
from lightrft_core.value_loss import explained_variance, spread_sums, value_share
from torch import Tensor

from lightrft_engines.training.exchange import Exchange
from lightrft_engines.training.passes import Passes, on_device, required, spare_row, trained_rows
from lightrft_engines.training.roles import Role
from lightrft_engines.training.stepsums import StepSums


@dataclass(frozen=True)
class Critic:
    """A value model that learns; `clip` is the value loss's."""

    role: Role
    adapter: ValueAdapter
    passes: Passes
    exchange: Exchange
    clip: float | None

    def fill(self, batch: Batch) -> None:
        """Set `values_BT` of the rows that train."""
        share = self.exchange.share(batch, trained_rows(batch))
        batch.values_BT = share.home(self.passes.values(self.role, self.adapter, share.batch))

    def gradient(self, minibatch: Batch, totals: Totals, sums: StepSums, world: World) -> float:
        """Gather the gradient of the value loss over all ranks; returns its norm and adds the step's metrics."""
        spread = world.sum(spread_sums(minibatch))
        share = self.exchange.share(minibatch, trained_rows(minibatch))
        parts = self.passes.parts(self.role.module, share.batch)
        own = sums if share.is_lead else None
        norm = self.role.gather(
            [partial(self._loss, part, totals, own) for part in parts]
            + [self._spare_loss] * (self.passes.num_passes(len(parts)) - len(parts))
        )
        explained = explained_variance(spread)
        sums.add({"critic_grad_norm": (norm, 1.0), "critic_lr": (self.role.rate, 1.0)})
        if self.role.scale is not None:
            sums.add({"critic_loss_scale": (self.role.scale.used, 1.0)})
        if explained is not None:
            sums.add({"explained_variance": (explained, 1.0)})
        return norm

    def _loss(self, part: Batch, totals: Totals, sums: StepSums | None) -> Tensor:
        values_BT = self.passes.forward_values(self.role, self.adapter, part)
        part = on_device(part, self.passes.device)
        old_BT, returns_BT = required(part.values_BT, "values_BT"), required(part.returns_BT, "returns_BT")
        share, metrics = value_share(values_BT, old_BT, returns_BT, part.mask_BT, totals, self.clip)
        if sums is not None:
            sums.add(metrics)
        return share

    def _spare_loss(self) -> Tensor:
        return self.passes.forward_values(self.role, self.adapter, spare_row()).sum() * 0.0
