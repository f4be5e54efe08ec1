"""The critic's loss against a plain loop, values and gradients, and however it is cut."""

import statistics
from dataclasses import replace

import pytest
import torch
from lightrft_core.objective import Totals
from lightrft_core.testing import tensors
from lightrft_core.value_loss import explained_variance, spread_sums, value_share

EXACT = 1e-9
MASK = torch.tensor([[True, True, False, True], [True, False, False, False], [False] * 4, [True] * 4])
TOTALS = Totals(tokens=8.0, sequences=3.0)


def given(seed=0):
    draws = torch.Generator().manual_seed(seed)
    values, old, returns = (torch.randn(MASK.shape, generator=draws, dtype=torch.float64) for _ in range(3))
    old = values + 0.3 * old
    hidden = ~MASK
    return values.requires_grad_(), old.masked_fill(hidden, float("nan")), returns.masked_fill(hidden, float("inf"))


def by_hand(values, old, returns, clip):
    """Loss, gradient by its case, and number of tokens at which the clip decides."""
    total, clipped, gradient = 0.0, 0, [[0.0] * 4 for _ in range(4)]
    for row in range(4):
        for token in range(4):
            if not MASK[row, token]:
                continue
            v, o, r = (float(part[row, token]) for part in (values, old, returns))
            held = v if clip is None else o + max(-clip, min(clip, v - o))
            if (held - r) ** 2 > (v - r) ** 2:
                total, clipped = total + 0.5 * (held - r) ** 2, clipped + 1
                inside = clip is None or abs(v - o) < clip
                gradient[row][token] = (held - r) / 8 if inside else 0.0
            else:
                total += 0.5 * (v - r) ** 2
                gradient[row][token] = (v - r) / 8
    return total / 8, gradient, clipped


@pytest.mark.parametrize("clip", [None, 0.2, 0.05, 10.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_the_formula_in_value_and_gradient(clip, seed):
    values, old, returns = given(seed)
    share, sums = value_share(values, old, returns, MASK, TOTALS, clip)
    share.backward()
    loss, gradient, clipped = by_hand(values.detach(), old, returns, clip)
    assert float(share.detach()) == pytest.approx(loss, abs=EXACT)
    assert values.grad.tolist() == [pytest.approx(row, abs=EXACT) for row in gradient]
    assert [float(part) for part in sums["value_clip_fraction"]] == [clipped, 8]
    assert float(sums["value_loss"][1]) == pytest.approx(1.0)


def test_shares_of_any_cut_add_up():
    values, old, returns = given()
    whole, _ = value_share(values, old, returns, MASK, TOTALS, 0.2)
    parts = [value_share(values[r], old[r], returns[r], MASK[r], TOTALS, 0.2)[0] for r in ([0], [2, 1], [3])]
    assert float(sum(parts).detach()) == pytest.approx(float(whole.detach()), abs=EXACT)


def test_rows_without_trained_tokens_cost_nothing():
    values, old, returns = given()
    share, _ = value_share(values, old, returns, torch.zeros_like(MASK), Totals(0.0, 0.0), 0.2)
    share.backward()
    assert (float(share.detach()), float(values.grad.abs().sum())) == (0.0, 0.0)


def critics_batch():
    batch = tensors.batch()
    batch.returns_BT = (batch.old_logprobs_BT * 0.3 + batch.values_BT).masked_fill(~batch.mask_BT, float("nan"))
    return batch


def test_explained_variance_is_1_less_the_share_of_variance_that_is_left():
    batch = critics_batch()
    returns, values = batch.returns_BT[batch.mask_BT].tolist(), batch.values_BT[batch.mask_BT].tolist()
    left = statistics.pvariance([r - v for r, v in zip(returns, values, strict=True)])
    expected = 1 - left / statistics.pvariance(returns)
    assert explained_variance(spread_sums(batch)) == pytest.approx(expected, abs=EXACT)


def test_sums_of_two_ranks_add_up():
    batch = critics_batch()
    parts = [spread_sums(batch.rows(rows)) for rows in ([0, 5, 7], [row for row in range(13) if row not in (0, 5, 7)])]
    assert [a + b for a, b in zip(*parts, strict=True)] == pytest.approx(spread_sums(batch), abs=EXACT)


def test_equal_returns_or_no_tokens_have_no_explained_variance():
    batch = critics_batch()
    constant = replace(batch, returns_BT=torch.full_like(batch.values_BT, 0.1))
    assert explained_variance(spread_sums(constant)) is None
    assert explained_variance([0.0] * 5) is None
