"""The supervised part of an optimizer step: coef times the mean over all ranks' tokens of -log p of the examples."""

from dataclasses import dataclass

from lightrft_core.data import Batch
from lightrft_core.objective import Totals, local_totals, reduce
from lightrft_core.protocols import World

from lightrft_engines.passes import Passes, trained_rows
from lightrft_engines.stepsums import StepSums
from lightrft_engines.trained import TrainedRole


@dataclass(frozen=True)
class Examples:
    """A batch to learn, and its weight."""

    batch: Batch
    coef: float

    def backward(self, role: TrainedRole, passes: Passes, sums: StepSums, world: World) -> None:
        """Add its gradient to what the role gathers, in passes that fit; `ptx_loss` is the mean without the weight."""
        own = local_totals(self.batch)
        tokens, sequences = world.sum([own.tokens, own.sequences])
        totals = Totals(tokens, sequences)
        for rows in passes.parts(role.module, self.batch, trained_rows(self.batch)):
            part = self.batch.rows(rows)
            found = passes.adapter.logprobs(role.module, part, layout=passes.layout, chunk=passes.config.logprob_chunk)
            mask_BT = part.mask_BT.to(found.logprobs_BT.device)
            share = reduce(-found.logprobs_BT, mask_BT, "token_mean", totals)
            (self.coef * share).backward()
            role.absorb()
            sums.add({"ptx_loss": (share.detach(), mask_BT.sum() / max(totals.tokens, 1.0))})
