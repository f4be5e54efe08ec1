"""The supervised part of an optimizer step: coef times the mean over all ranks' tokens of -log p of the examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from lightrft_core.data import Batch
from lightrft_core.objective import Totals, local_totals, reduce
from lightrft_core.protocols import LogProbs, World
from torch import Tensor

from lightrft_engines.training.exchange import Exchange
from lightrft_engines.training.passes import Passes, on_device, trained_rows
from lightrft_engines.training.roles import Role
from lightrft_engines.training.stepsums import StepSums


@dataclass(frozen=True)
class Examples:
    """A batch to learn, and its weight."""

    batch: Batch
    coef: float

    def losses(
        self, role: Role, passes: Passes, exchange: Exchange, sums: StepSums, world: World
    ) -> list[Callable[[], Tensor]]:
        """Its loss in passes that fit; the metric `ptx_loss` is the mean without the weight."""
        own = local_totals(self.batch)
        tokens, sequences = world.sum([own.tokens, own.sequences])
        totals = Totals(tokens, sequences)
        share = exchange.share(self.batch, trained_rows(self.batch))
        counted = sums if share.is_lead else None
        parts = passes.parts(role.module, share.batch)
        return [partial(self._loss, part, role, passes, totals, counted) for part in parts]

    def _loss(self, part: Batch, role: Role, passes: Passes, totals: Totals, sums: StepSums | None) -> Tensor:
        mask_BT = on_device(part, passes.device).mask_BT

        def share(rows: Sequence[int], found: LogProbs) -> Tensor:
            own_RT = mask_BT[list(rows)]
            value: Tensor = reduce(-found.logprobs_BT, own_RT, "token_mean", totals)
            if sums is not None:
                sums.add({"ptx_loss": (value.detach(), own_RT.sum() / max(totals.tokens, 1.0))})
            return self.coef * value

        return passes.loss(role, part, share)
