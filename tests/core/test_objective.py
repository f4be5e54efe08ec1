"""The reduction: exact against plain loops, and the same however a batch is cut."""

import math

import pytest
import torch
from lightrft_core.data import KLOutput, LossInputs, LossOutput
from lightrft_core.objective import Objective, Totals, reduce

AGGREGATIONS = ["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "seq_mean_token_sum_norm"]
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 1]], dtype=torch.bool)
VALUES = torch.arange(16, dtype=torch.float64).reshape(4, 4) / 7 - 1
BUDGET = 6.0


def by_hand(aggregation):
    rows = [[VALUES[i, j].item() for j in range(4) if MASK[i, j]] for i in range(4)]
    rows = [row for row in rows if row]
    tokens = sum(len(row) for row in rows)
    return {
        "token_mean": sum(map(sum, rows)) / tokens,
        "seq_mean_token_mean": sum(sum(row) / len(row) for row in rows) / len(rows),
        "seq_mean_token_sum": sum(map(sum, rows)) / len(rows),
        "seq_mean_token_sum_norm": sum(map(sum, rows)) / len(rows) / BUDGET,
    }[aggregation]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_reduction_equals_a_plain_loop(aggregation):
    loss = reduce(VALUES, MASK, aggregation, Totals(7, 3), BUDGET)
    assert loss.item() == pytest.approx(by_hand(aggregation), abs=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_shares_of_any_cut_add_up(aggregation):
    totals = Totals(7, 3)
    whole = reduce(VALUES, MASK, aggregation, totals, BUDGET)
    parts = sum(reduce(VALUES[i : i + 1], MASK[i : i + 1], aggregation, totals, BUDGET) for i in range(4))
    assert torch.allclose(whole, parts, atol=1e-12)


def test_masked_nan_does_not_leak():
    values = VALUES.masked_fill(~MASK, math.nan).requires_grad_()
    loss = reduce(values, MASK, "token_mean", Totals(7, 3))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(values.grad).all()


def test_sequence_values_are_averaged_over_rows_that_train():
    values = torch.tensor([1.0, 2.0, 100.0, 4.0])
    assert reduce(values, MASK, "token_mean", Totals(7, 3)).item() == pytest.approx(7 / 3)


def test_nothing_to_train_gives_zero():
    assert reduce(VALUES, torch.zeros_like(MASK), "token_mean", Totals(0, 0)).item() == 0.0


def test_wrong_shape_is_a_programmers_error():
    with pytest.raises(ValueError, match="shape"):
        reduce(VALUES[:, :2], MASK, "token_mean", Totals(7, 3))
    with pytest.raises(ValueError, match="budget"):
        reduce(VALUES, MASK, "seq_mean_token_sum_norm", Totals(7, 3))


def test_objective_adds_kl_and_entropy_with_their_weights():
    inputs = LossInputs(VALUES, VALUES, VALUES, MASK, ref_logprobs_BT=VALUES - 0.5, entropy_BT=VALUES * 0 + 2.0)
    objective = Objective(
        loss=lambda given: LossOutput(given.logprobs_BT * 3),
        aggregation="token_mean",
        kl=lambda new, ref: new - ref,
        kl_coef=0.1,
        entropy_coef=0.01,
    )
    total, sums = objective.share(inputs, Totals(7, 3))
    assert total.item() == pytest.approx(3 * by_hand("token_mean") + 0.1 * 0.5 - 0.01 * 2.0)
    assert sums["kl"][0].item() == pytest.approx(7 * 0.5)
    assert sums["kl"][1].item() == 7
    assert sums["policy_loss"][0].item() / sums["policy_loss"][1].item() == pytest.approx(3 * by_hand("token_mean"))


def test_metrics_of_the_kl_estimator_are_told_with_a_prefix():
    inputs = LossInputs(VALUES, VALUES, VALUES, MASK, ref_logprobs_BT=VALUES - 0.5)
    objective = Objective(
        loss=lambda given: LossOutput(given.logprobs_BT),
        kl=lambda new, ref: KLOutput(new - ref, {"clamp_fraction": (VALUES > 0).double()}),
        kl_coef=0.1,
    )
    _, sums = objective.share(inputs, Totals(7, 3))
    assert sums["kl"][0].item() == pytest.approx(7 * 0.5)
    assert [float(part) for part in sums["kl_clamp_fraction"]] == [float((VALUES > 0)[MASK].sum()), 7]


def test_correction_weights_multiply_token_values():
    objective = Objective(loss=lambda given: LossOutput(given.logprobs_BT), aggregation="token_mean")
    inputs = LossInputs(VALUES, VALUES, VALUES, MASK)
    total, _ = objective.share(inputs, Totals(7, 3), weights_BT=VALUES * 0 + 0.5)
    assert total.item() == pytest.approx(by_hand("token_mean") / 2)
