"""What an optimizer step minimises, reduced so that no cut of the batch can change its gradient.

A loss gives values per token or per sequence. They are summed here and divided by counts of the *whole optimizer step
over all ranks*, so micro-batches and ranks simply add up: no mean of means anywhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from lightrft_core.data import Batch, KLOutput, LossInputs, LossOutput, Tensor
from lightrft_core.sections import Aggregation

LossFunction = Callable[[LossInputs], LossOutput]
KLFunction = Callable[[Tensor, Tensor], Tensor | KLOutput]
Sums = dict[str, tuple[Tensor | float, Tensor | float]]


@dataclass(frozen=True, slots=True)
class Totals:
    """Trained tokens and sequences with at least one of them, in the whole optimizer step over all ranks."""

    tokens: float
    sequences: float


def local_totals(batch: Batch) -> Totals:
    """Count this rank's share; the strategy sums it over ranks."""
    per_row = batch.mask_BT.sum(-1)
    return Totals(tokens=float(per_row.sum()), sequences=float((per_row > 0).sum()))


def reduce(
    values: Tensor, mask_BT: Tensor, aggregation: Aggregation, totals: Totals, token_budget: float | None = None
) -> Tensor:
    """Reduce values [B, T] or [B] to this cut's share of the loss, a scalar; shares of all cuts add up to the loss.

    Masked entries may hold anything, NaN included. Where nothing trains at all the share is 0. Raises `ValueError` for
    `seq_mean_token_sum_norm` without a budget, and for another shape than [B, T] or [B].
    """
    sequences = max(totals.sequences, 1.0)
    if values.ndim == 1:
        return values.masked_fill(~mask_BT.any(-1), 0.0).sum() / sequences
    if values.shape != mask_BT.shape:
        raise ValueError(f"loss values have shape {tuple(values.shape)}, expected {tuple(mask_BT.shape)} or [B]")
    kept_BT = values.masked_fill(~mask_BT, 0.0)
    if aggregation == "token_mean":
        return kept_BT.sum() / max(totals.tokens, 1.0)
    if aggregation == "seq_mean_token_mean":
        return (kept_BT.sum(-1) / mask_BT.sum(-1).clamp(min=1)).sum() / sequences
    if aggregation == "seq_mean_token_sum":
        return kept_BT.sum() / sequences
    if token_budget is None:
        raise ValueError("seq_mean_token_sum_norm needs a token budget")
    return kept_BT.sum() / (sequences * token_budget)


@dataclass(frozen=True, slots=True)
class Objective:
    """Loss, KL in the loss and entropy bonus as one scalar.

    `zero_without_advantage` promises that a row whose advantages are all 0 has a zero gradient, so that a strategy may
    leave its forward pass out; such rows still count in the totals. An update whose mean gap between engine and trainer
    is more than `max_gap` nats per token is left out and reported as skipped, by strategies that provide `gap`.
    """

    loss: LossFunction
    aggregation: Aggregation = "seq_mean_token_mean"
    token_budget: float | None = None
    kl: KLFunction | None = None
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    zero_without_advantage: bool = False
    max_gap: float | None = None

    @property
    def needs_entropy(self) -> bool:
        """Whether the entropy must carry a gradient."""
        return self.entropy_coef != 0.0

    def share(self, inputs: LossInputs, totals: Totals, weights_BT: Tensor | None = None) -> tuple[Tensor, Sums]:
        """This cut's share of the objective, and its metrics as (sum, count) pairs.

        Masked entries of `inputs` may hold anything, NaN included: loss and KL see 0 there.
        """
        inputs = _without_masked(inputs)
        output = self.loss(inputs)
        values = output.values if weights_BT is None else _weighted(output.values, weights_BT, inputs.mask_BT)
        policy_loss = self._reduce(values, inputs.mask_BT, totals)
        total = policy_loss
        num_tokens = inputs.mask_BT.sum()
        part = num_tokens / max(totals.tokens, 1.0)
        sums: Sums = {"policy_loss": (policy_loss.detach(), part)}
        if self.kl is not None and inputs.ref_logprobs_BT is not None:
            kl = kl_output(self.kl(inputs.logprobs_BT, inputs.ref_logprobs_BT))
            total = total + self.kl_coef * self._reduce(kl.values, inputs.mask_BT, totals)
            sums |= kl_sums(kl, inputs.mask_BT)
        if inputs.entropy_BT is not None:
            sums["entropy"] = _masked_sum(inputs.entropy_BT, inputs.mask_BT)
            if self.needs_entropy:
                total = total - self.entropy_coef * self._reduce(inputs.entropy_BT, inputs.mask_BT, totals)
        sums["loss"] = (total.detach(), part)
        return total, sums | _metric_sums(output.metrics, inputs.mask_BT)

    def _reduce(self, values: Tensor, mask_BT: Tensor, totals: Totals) -> Tensor:
        return reduce(values, mask_BT, self.aggregation, totals, self.token_budget)


def kl_output(estimated: Tensor | KLOutput) -> KLOutput:
    """What a KL estimator returned; a bare tensor has no metrics."""
    return estimated if isinstance(estimated, KLOutput) else KLOutput(estimated)


def kl_sums(kl: KLOutput, mask_BT: Tensor) -> Sums:
    """The KL and the metrics of its estimator as (sum, count) pairs over the trained tokens."""
    parts = {"kl": kl.values} | {f"kl_{name}": values_BT for name, values_BT in kl.metrics.items()}
    return {name: _masked_sum(values_BT, mask_BT) for name, values_BT in parts.items()}


def _without_masked(inputs: LossInputs) -> LossInputs:
    hidden_BT = ~inputs.mask_BT
    ref_BT, entropy_BT = inputs.ref_logprobs_BT, inputs.entropy_BT
    return replace(
        inputs,
        logprobs_BT=inputs.logprobs_BT.masked_fill(hidden_BT, 0.0),
        old_logprobs_BT=inputs.old_logprobs_BT.masked_fill(hidden_BT, 0.0),
        advantages_BT=inputs.advantages_BT.masked_fill(hidden_BT, 0.0),
        ref_logprobs_BT=None if ref_BT is None else ref_BT.masked_fill(hidden_BT, 0.0),
        entropy_BT=None if entropy_BT is None else entropy_BT.masked_fill(hidden_BT, 0.0),
    )


def _weighted(values: Tensor, weights_BT: Tensor, mask_BT: Tensor) -> Tensor:
    if values.ndim == 2:
        return values * weights_BT
    mean_B = weights_BT.masked_fill(~mask_BT, 0.0).sum(-1) / mask_BT.sum(-1).clamp(min=1)
    return values * mean_B


def _masked_sum(values_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    return values_BT.detach().masked_fill(~mask_BT, 0.0).sum(), mask_BT.sum()


def _metric_sums(metrics: Mapping[str, Tensor], mask_BT: Tensor) -> Sums:
    rows_B = mask_BT.any(-1)
    return {name: _masked_sum(values, mask_BT if values.ndim == 2 else rows_B) for name, values in metrics.items()}
