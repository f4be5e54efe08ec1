"""A loss: values before reduction, whose gradient no cut, order, padding or number of ranks can change."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from lightrft_core.data import LossInputs, LossOutput, Tensor
from lightrft_core.objective import Objective, Totals
from lightrft_core.sections import Aggregation
from lightrft_core.testing import tensors
from lightrft_core.testing.ranks import gradients_on_ranks
from lightrft_core.testing.results import Case, Check, require
from lightrft_core.testing.tensors import TOLERANCE

AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)
TOKEN_BUDGET = 16.0
Cut = Sequence[Sequence[int]]


def totals_of(inputs: LossInputs) -> Totals:
    """Counts of the whole optimizer step."""
    per_row = inputs.mask_BT.sum(-1)
    return Totals(tokens=float(per_row.sum()), sequences=float((per_row > 0).sum()))


def gradient(
    loss: Case, inputs: LossInputs, aggregation: Aggregation, cut: Cut, totals: Totals
) -> tuple[Tensor, dict[str, tuple[float, float]]]:
    """Gradient [B, T] of the objective by the log-probabilities, added over micro-batches; and the metric sums."""
    leaf_BT = inputs.logprobs_BT.detach().clone().requires_grad_()
    objective = Objective(loss.call, aggregation, token_budget=TOKEN_BUDGET)
    metrics: dict[str, tuple[float, float]] = {}
    for rows in cut:
        part = tensors.select_rows(replace(inputs, logprobs_BT=leaf_BT), rows)
        share, sums = objective.share(part, totals)
        require(share.requires_grad, "the values carry no gradient of the log-probabilities")
        share.backward()
        for name, (total, count) in sums.items():
            present = metrics.get(name, (0.0, 0.0))
            metrics[name] = (present[0] + float(total), present[1] + float(count))
    return leaf_BT.grad, metrics


def values_are_per_token_or_per_sequence(case: Case) -> None:
    """[B, T] or [B], metrics alike, nothing reduced."""
    inputs = tensors.loss_inputs()
    output = case.call(inputs)
    require(isinstance(output, LossOutput), f"a loss returns a LossOutput, not {type(output).__name__}")
    allowed = (tuple(inputs.mask_BT.shape), (inputs.mask_BT.shape[0],))
    for name, values in {"values": output.values, **output.metrics}.items():
        shape = tuple(values.shape)
        require(shape in allowed, f"{name} has shape {shape}; expected [B, T] = {allowed[0]} or [B] = {allowed[1]}")


def inputs_are_left_alone(case: Case) -> None:
    """Pure: the same inputs, unchanged, give the same values again."""
    inputs = tensors.loss_inputs()
    before = tensors.copy_of(inputs)
    first, second = case.call(inputs).values, case.call(inputs).values
    changed = tensors.differs(inputs, before)
    require(not changed, f"{changed} was changed in place")
    require(tensors.deviation(first, second) == 0.0, "two calls with the same inputs give different values")


def extreme_log_ratios_stay_finite(case: Case) -> None:
    """Float32, with log-ratios of +-50 and +-1000: values, metrics and gradients."""
    torch = tensors.torch_module()
    inputs = tensors.loss_inputs()
    jumps = torch.tensor([50.0, -50.0, 1000.0, -1000.0, 0.0, 50.0, -1000.0])
    changed = {
        "logprobs_BT": inputs.logprobs_BT.float(),
        "old_logprobs_BT": (inputs.logprobs_BT - jumps).float(),
        "advantages_BT": inputs.advantages_BT.float(),
        "ref_logprobs_BT": (inputs.logprobs_BT + jumps).float(),
    }
    inputs = replace(inputs, **changed, entropy_BT=None)
    whole = [list(range(len(inputs.mask_BT)))]
    for aggregation in AGGREGATIONS:
        found, metrics = gradient(case, inputs, aggregation, whole, totals_of(inputs))
        require(bool(torch.isfinite(found).all()), f"the gradient is not finite ({aggregation})")
        bad = [name for name, (total, _) in metrics.items() if not math.isfinite(total)]
        require(not bad, f"{', '.join(bad)} not finite: clamp log-ratios before exp")


def micro_batches_do_not_change_the_gradient(case: Case) -> None:
    """Micro-batches of 1, 2 and 3 rows against all at once, for every aggregation; metric sums too."""
    inputs = tensors.loss_inputs()
    rows = list(range(len(inputs.mask_BT)))
    for aggregation in AGGREGATIONS:
        whole, sums = gradient(case, inputs, aggregation, [rows], totals_of(inputs))
        for size in (1, 2, 3):
            cut = [rows[start : start + size] for start in range(0, len(rows), size)]
            found, parts = gradient(case, inputs, aggregation, cut, totals_of(inputs))
            _same(found, whole, inputs.mask_BT, f"micro-batches of {size} rows ({aggregation})")
            _same_sums(parts, sums, f"micro-batches of {size} rows")


def row_order_does_not_change_the_gradient(case: Case) -> None:
    """Rows in another order."""
    inputs = tensors.loss_inputs()
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    for aggregation in AGGREGATIONS:
        whole, _ = gradient(case, inputs, aggregation, [sorted(order)], totals_of(inputs))
        found, _ = gradient(case, inputs, aggregation, [order[:5], order[5:]], totals_of(inputs))
        _same(found, whole, inputs.mask_BT, f"another order of rows ({aggregation})")


def padding_does_not_change_the_gradient(case: Case) -> None:
    """One and five more masked tokens."""
    inputs = tensors.loss_inputs()
    rows = [list(range(len(inputs.mask_BT)))]
    for aggregation in AGGREGATIONS:
        whole, _ = gradient(case, inputs, aggregation, rows, totals_of(inputs))
        for num in (1, 5):
            padded, _ = gradient(case, tensors.with_padding(inputs, num), aggregation, rows, totals_of(inputs))
            _same(padded[:, :-num], whole, inputs.mask_BT, f"{num} more tokens of padding ({aggregation})")


def masked_tokens_do_not_leak(case: Case) -> None:
    """NaN at every masked token: the gradient stays the same, and is 0 there."""
    inputs = tensors.loss_inputs()
    rows = [list(range(len(inputs.mask_BT)))]
    for aggregation in AGGREGATIONS:
        clean, sums = gradient(case, inputs, aggregation, rows, totals_of(inputs))
        planted, parts = gradient(case, tensors.with_masked(inputs, math.nan), aggregation, rows, totals_of(inputs))
        _same(planted, clean, inputs.mask_BT, f"NaN at masked tokens ({aggregation})")
        nothing = tensors.deviation(planted, planted * 0.0, ~inputs.mask_BT) == 0.0
        require(nothing, "masked tokens have a gradient")
        _same_sums(parts, sums, "NaN at masked tokens")


def two_ranks_give_the_gradient_of_one(case: Case) -> None:
    """Two processes (gloo), each with every other row; gradients add up."""
    inputs = tensors.loss_inputs()
    rows = [list(range(len(inputs.mask_BT)))]
    found = gradients_on_ranks(case, AGGREGATIONS)
    for aggregation in AGGREGATIONS:
        whole, _ = gradient(case, inputs, aggregation, rows, totals_of(inputs))
        _same(found[aggregation], whole, inputs.mask_BT, f"two ranks ({aggregation})")


def promised_zero_gradient_without_advantage_holds(case: Case) -> str | None:
    """Only where `provides={"zero_without_advantage"}` promises it."""
    if "zero_without_advantage" not in case.component.provides:
        return "not promised"
    inputs = tensors.loss_inputs()
    inputs = replace(inputs, advantages_BT=inputs.advantages_BT * 0.0)
    found, _ = gradient(case, inputs, "token_mean", [list(range(len(inputs.mask_BT)))], totals_of(inputs))
    require(tensors.deviation(found, found * 0.0) == 0.0, "rows without advantage have a gradient")
    return None


def _same(found: Tensor, expected: Tensor, mask_BT: Tensor, what: str) -> None:
    gap = tensors.deviation(found, expected, mask_BT)
    require(gap <= TOLERANCE, f"{what}: the gradient changes by {gap:.3g}")


def _same_sums(found: dict[str, tuple[float, float]], expected: dict[str, tuple[float, float]], what: str) -> None:
    for name, pair in expected.items():
        gap = max(abs(one - other) for one, other in zip(pair, found.get(name, (math.inf, math.inf)), strict=True))
        require(gap <= TOLERANCE * (1 + abs(pair[0])), f"{what}: the metric {name} changes by {gap:.3g}")


CHECKS: tuple[Check, ...] = (
    values_are_per_token_or_per_sequence,
    inputs_are_left_alone,
    extreme_log_ratios_stay_finite,
    micro_batches_do_not_change_the_gradient,
    row_order_does_not_change_the_gradient,
    padding_does_not_change_the_gradient,
    masked_tokens_do_not_leak,
    two_ranks_give_the_gradient_of_one,
    promised_zero_gradient_without_advantage_holds,
)
