"""The critic as a role of a strategy: it fills values in and learns returns beside the policy, by its own optimizer."""

from dataclasses import dataclass

from lightrft_core.data import Batch
from lightrft_core.objective import Totals
from lightrft_core.protocols import ValueAdapter, World
from lightrft_core.value_loss import explained_variance, spread_sums, value_share

from lightrft_engines.passes import Passes, on_device, required, trained_rows
from lightrft_engines.stepsums import StepSums
from lightrft_engines.trained import TrainedRole


@dataclass(frozen=True)
class Critic:
    """A value model that learns; `clip` is the value loss's."""

    role: TrainedRole
    adapter: ValueAdapter
    passes: Passes
    clip: float | None

    def fill(self, batch: Batch) -> None:
        """Set `values_BT` of the rows that train."""
        batch.values_BT = self.passes.values(self.adapter, self.role.module, batch, trained_rows(batch))

    def gradient(self, minibatch: Batch, totals: Totals, sums: StepSums, world: World) -> float:
        """Gather the gradient of the value loss over all ranks; returns its norm and adds the step's metrics."""
        spread = world.sum(spread_sums(minibatch))
        with self.role.gathering():
            for part in self.passes.parts(self.role.module, minibatch, trained_rows(minibatch)):
                self._backward(minibatch.rows(part), totals, sums)
                self.role.absorb()
        norm = self.role.reduce(world)
        explained = explained_variance(spread)
        sums.add({"critic_grad_norm": (norm, 1.0), "critic_lr": (self.role.rate, 1.0)})
        if explained is not None:
            sums.add({"explained_variance": (explained, 1.0)})
        return norm

    def _backward(self, part: Batch, totals: Totals, sums: StepSums) -> None:
        values_BT = self.adapter.values(self.role.module, part, layout=self.passes.layout)
        part = on_device(part, self.passes.device)
        old_BT, returns_BT = required(part.values_BT, "values_BT"), required(part.returns_BT, "returns_BT")
        share, metrics = value_share(values_BT, old_BT, returns_BT, part.mask_BT, totals, self.clip)
        share.backward()
        sums.add(metrics)
