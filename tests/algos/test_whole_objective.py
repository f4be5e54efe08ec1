"""Loss, KL, entropy bonus and importance weights together, reduced in each way, against one plain loop over tokens."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from lightrft_algos.corrections.tis import TisConfig, tis
from lightrft_algos.kls.k1 import K1Config, k1
from lightrft_algos.kls.k2 import K2Config, k2
from lightrft_algos.kls.k3 import K3Config, k3
from lightrft_algos.losses.clip import ClipConfig, clip
from lightrft_core.objective import Objective, local_totals
from lightrft_core.protocols import SoloWorld

from tests.algos.batches import batch_of, random_inputs

EXACT = 1e-9
BUDGET, CAP, KL_COEF, ENTROPY_COEF = 32.0, 1.3, 0.7, 0.05
AGGREGATIONS = ["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "seq_mean_token_sum_norm"]
KLS = {  # value and derivative by the log-probability, d = l_ref - l
    "k1": (partial(k1, config=K1Config()), lambda d: (-d, 1.0)),
    "k2": (partial(k2, config=K2Config()), lambda d: (d * d / 2, -d)),
    "k3": (partial(k3, config=K3Config()), lambda d: (math.exp(d) - d - 1, 1 - math.exp(d))),
}


def given(seed):
    """Ragged rows, one fully masked, one with a hole; references and engines with gaps of their own."""
    inputs, draws = random_inputs(seed), torch.Generator().manual_seed(seed + 100)

    def normal():
        return torch.randn(inputs.mask_BT.shape, generator=draws, dtype=torch.float64)

    reference = inputs.logprobs_BT.detach() + 0.8 * normal()
    entropy = normal().abs().requires_grad_()
    engine = inputs.old_logprobs_BT + 0.5 * normal()
    return replace(inputs, ref_logprobs_BT=reference, entropy_BT=entropy), engine


def weights_of(inputs, engine):
    lengths = inputs.mask_BT.sum(-1).tolist()
    batch = batch_of([1.0] * 6, [0] * 6, [6] * 6, mask=inputs.mask_BT.tolist(), engine_logprobs_BT=engine)
    assert 0 in lengths
    batch.old_logprobs_BT = inputs.old_logprobs_BT
    return tis(batch, SoloWorld(), config=TisConfig(cap=CAP)).weights_BT


def token_share(aggregation, rows, row):
    """What each token of a row is multiplied by."""
    filled = [tokens for tokens in rows.values() if tokens]
    return {
        "token_mean": 1 / sum(map(len, filled)),
        "seq_mean_token_mean": 1 / len(rows[row]) / len(filled),
        "seq_mean_token_sum": 1 / len(filled),
        "seq_mean_token_sum_norm": 1 / len(filled) / BUDGET,
    }[aggregation]


def clip_by_hand(log_ratio, advantage):
    """Value and derivative by the log-probability."""
    ratio = math.exp(log_ratio)
    held = max(0.8, min(1.28, ratio))
    if held * advantage < ratio * advantage:
        return -held * advantage, 0.0
    return -ratio * advantage, -ratio * advantage


def by_hand(inputs, engine, aggregation, kl_of):
    """The objective, and its derivatives by each log-probability and each entropy."""
    rows = {row: [t for t in range(6) if inputs.mask_BT[row, t]] for row in range(6)}
    total, slopes, entropy_slopes = 0.0, {}, {}
    for row, tokens in rows.items():
        for token in tokens:
            l_new, l_old, l_ref, l_engine, advantage, entropy = (
                float(part.detach()[row, token])
                for part in (
                    *(inputs.logprobs_BT, inputs.old_logprobs_BT, inputs.ref_logprobs_BT, engine),
                    *(inputs.advantages_BT, inputs.entropy_BT),
                )
            )
            share, weight = token_share(aggregation, rows, row), min(math.exp(l_old - l_engine), CAP)
            value, slope = clip_by_hand(l_new - l_old, advantage)
            kl, kl_slope = kl_of(l_ref - l_new)
            total += share * (weight * value + KL_COEF * kl - ENTROPY_COEF * entropy)
            slopes[row, token] = share * (weight * slope + KL_COEF * kl_slope)
            entropy_slopes[row, token] = -share * ENTROPY_COEF
    return total, slopes, entropy_slopes


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", KLS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_whole_objective_equals_a_plain_loop_in_value_and_gradient(aggregation, name, seed):
    estimator, kl_of = KLS[name]
    inputs, engine = given(seed)
    objective = Objective(
        partial(clip, config=ClipConfig(clip_high=0.28)),
        aggregation,
        BUDGET,
        kl=estimator,
        kl_coef=KL_COEF,
        entropy_coef=ENTROPY_COEF,
    )
    share, _ = objective.share(inputs, local_totals(inputs), weights_of(inputs, engine))
    share.backward()
    total, slopes, entropy_slopes = by_hand(inputs, engine, aggregation, kl_of)
    assert float(share.detach()) == pytest.approx(total, abs=EXACT)
    for row in range(6):
        for token in range(6):
            place = row, token
            assert float(inputs.logprobs_BT.grad[place]) == pytest.approx(slopes.get(place, 0.0), abs=EXACT)
            assert float(inputs.entropy_BT.grad[place]) == pytest.approx(entropy_slopes.get(place, 0.0), abs=EXACT)


@pytest.mark.parametrize("gap", [50.0, -50.0, 1e4, -1e4])
def test_extreme_log_ratios_everywhere_leave_it_finite(gap):
    inputs, engine = given(0)
    far = replace(
        inputs, old_logprobs_BT=inputs.logprobs_BT.detach() - gap, ref_logprobs_BT=inputs.logprobs_BT.detach() + gap
    )
    objective = Objective(
        partial(clip, config=ClipConfig()), kl=KLS["k3"][0], kl_coef=KL_COEF, entropy_coef=ENTROPY_COEF
    )
    share, sums = objective.share(far, local_totals(far), weights_of(far, engine - gap))
    share.backward()
    assert bool(torch.isfinite(share.detach())) and bool(torch.isfinite(inputs.logprobs_BT.grad).all())
    for name in ("clamp_fraction", "kl_clamp_fraction"):
        assert float(sums[name][0]) == float(sums[name][1]) == float(inputs.mask_BT.sum())
