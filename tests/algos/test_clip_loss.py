"""The clip loss against a plain loop: values, metrics and gradients."""

import math
from dataclasses import replace

import pytest
import torch
from lightrft_algos.losses.clip import ClipConfig, clip
from lightrft_core.objective import Objective, local_totals
from pydantic import ValidationError

from tests.algos.batches import random_inputs

EXACT = 1e-9


def token_by_hand(logprob, old, advantage, low, high, dual):
    """Value and derivative by the log-probability, and the three metrics, from the paper's formula."""
    log_ratio = max(-20.0, min(20.0, logprob - old))
    ratio = math.exp(log_ratio)
    slope = ratio if abs(logprob - old) < 20 else 0.0
    bounded = max(1 - low, min(1 + high, ratio))
    bounded_slope = slope if bounded == ratio else 0.0
    objective, gradient, is_clipped = ratio * advantage, slope * advantage, False
    if bounded * advantage < ratio * advantage:
        objective, gradient, is_clipped = bounded * advantage, bounded_slope * advantage, True
    if dual is not None and advantage < 0 and objective < dual * advantage:
        objective, gradient = dual * advantage, 0.0
    return -objective, -gradient, ratio, float(is_clipped), ratio - 1 - log_ratio


def compare(inputs, **options):
    """Every trained token of the loss against the loop; gradients of the plain sum."""
    config = ClipConfig(**options)
    output = clip(inputs, config=config)
    output.values.masked_fill(~inputs.mask_BT, 0.0).sum().backward()
    seen = set()
    for row, token in inputs.mask_BT.nonzero().tolist():
        logprob = float(inputs.logprobs_BT.detach()[row, token])
        old, advantage = float(inputs.old_logprobs_BT[row, token]), float(inputs.advantages_BT[row, token])
        value, gradient, ratio, clipped, kl = token_by_hand(
            logprob, old, advantage, config.clip_low, config.clip_high, config.dual_clip
        )
        assert float(output.values.detach()[row, token]) == pytest.approx(value, abs=EXACT)
        assert float(inputs.logprobs_BT.grad[row, token]) == pytest.approx(gradient, abs=EXACT)
        assert float(output.metrics["ratio"][row, token]) == pytest.approx(ratio, abs=EXACT)
        assert float(output.metrics["clip_fraction"][row, token]) == clipped
        assert float(output.metrics["approx_kl"][row, token]) == pytest.approx(kl, abs=EXACT)
        seen.add((clipped, advantage > 0, gradient == 0.0))
    assert inputs.logprobs_BT.grad[~inputs.mask_BT].abs().sum() == 0.0
    return seen


@pytest.mark.parametrize("options", [{}, {"clip_high": 0.28}, {"clip_low": 0.0, "clip_high": 1.0}, {"dual_clip": 1.2}])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_formula(options, seed):
    seen = compare(random_inputs(seed), **options)
    assert (0.0, True, False) in seen and (0.0, False, False) in seen


def test_both_bounds_are_met_by_the_test_data():
    seen = {item for seed in range(4) for item in compare(random_inputs(seed))}
    assert (1.0, True, True) in seen and (1.0, False, True) in seen


def test_dual_clip_bounds_the_loss_of_a_bad_token():
    inputs = replace(random_inputs(), old_logprobs_BT=random_inputs().logprobs_BT.detach() - 3.0)
    inputs = replace(inputs, advantages_BT=-torch.ones_like(inputs.advantages_BT))
    assert float(clip(inputs, config=ClipConfig()).values.detach()[0, 0]) == pytest.approx(math.exp(3.0), abs=EXACT)
    assert float(clip(inputs, config=ClipConfig(dual_clip=3.0)).values.detach()[0, 0]) == 3.0


@pytest.mark.parametrize("gap", [50.0, -50.0, 1e4, -1e4])
def test_extreme_log_ratios_stay_finite_and_have_no_gradient(gap):
    inputs = random_inputs()
    compare(replace(inputs, old_logprobs_BT=inputs.logprobs_BT.detach() - gap))
    assert inputs.logprobs_BT.grad.abs().sum() == 0.0


def test_first_step_has_ratio_1_and_clips_nothing():
    inputs = random_inputs(scale=0.0)
    output = clip(inputs, config=ClipConfig())
    kept = inputs.mask_BT
    assert set(output.metrics["ratio"][kept].tolist()) == {1.0}
    assert output.metrics["clip_fraction"][kept].sum() == 0.0
    assert output.metrics["approx_kl"][kept].abs().sum() == 0.0
    output.values[kept].sum().backward()
    assert torch.equal(inputs.logprobs_BT.grad[kept], -inputs.advantages_BT[kept])


def test_nan_at_masked_tokens_does_not_reach_gradient_or_values():
    inputs = random_inputs()
    planted = replace(inputs, old_logprobs_BT=inputs.old_logprobs_BT.masked_fill(~inputs.mask_BT, math.nan))
    compare(planted)


@pytest.mark.parametrize(
    "aggregation", ["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "seq_mean_token_sum_norm"]
)
def test_each_aggregation_equals_its_formula(aggregation):
    inputs = random_inputs()
    rows = [[t for t in range(6) if inputs.mask_BT[b, t]] for b in range(6)]
    values = [
        [
            token_by_hand(
                float(inputs.logprobs_BT.detach()[b, t]),
                float(inputs.old_logprobs_BT[b, t]),
                float(inputs.advantages_BT[b, t]),
                0.2,
                0.2,
                None,
            )[0]
            for t in tokens
        ]
        for b, tokens in enumerate(rows)
        if tokens
    ]
    expected = {
        "token_mean": sum(map(sum, values)) / sum(map(len, values)),
        "seq_mean_token_mean": sum(sum(row) / len(row) for row in values) / len(values),
        "seq_mean_token_sum": sum(map(sum, values)) / len(values),
        "seq_mean_token_sum_norm": sum(map(sum, values)) / (len(values) * 32.0),
    }[aggregation]
    objective = Objective(lambda given: clip(given, config=ClipConfig()), aggregation, token_budget=32.0)
    share, _ = objective.share(inputs, local_totals(inputs))
    assert float(share.detach()) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("options", [{"clip_low": -0.1}, {"clip_low": 1.5}, {"clip_high": -1.0}, {"dual_clip": 1.0}])
def test_impossible_bounds_are_refused(options):
    with pytest.raises(ValidationError):
        ClipConfig(**options)
