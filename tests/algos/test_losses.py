"""Every loss but clip against a plain loop over rows: values, metrics and gradients."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from lightrft_algos.losses.cispo import CispoConfig, cispo
from lightrft_algos.losses.clip import ClipConfig, clip
from lightrft_algos.losses.cpgd import CpgdConfig, cpgd
from lightrft_algos.losses.gmpo import GmpoConfig, gmpo
from lightrft_algos.losses.gspo import GspoConfig, gspo
from lightrft_algos.losses.reinforce import ReinforceLossConfig, reinforce
from lightrft_algos.losses.sapo import SapoConfig, sapo
from lightrft_core.objective import Objective, local_totals
from pydantic import ValidationError

from tests.algos.batches import random_inputs

EXACT = 1e-9


@dataclass
class Row:
    """One row's trained tokens, as lists: log-probabilities, log-ratios, advantages."""

    logprobs: list[float]
    ratios: list[float]
    advantages: list[float]

    def __len__(self):
        return len(self.ratios)


def held(value):
    return max(-20.0, min(20.0, value))


def band(value, low, high):
    return max(low, min(high, value))


def mean(values):
    return sum(values) / len(values) if values else 0.0


# Each returns values (one a token, or one for the row), derivatives by each token's log-probability, what is clipped.


def gspo_by_hand(row, config):
    log_s, advantage = mean(row.ratios), mean(row.advantages)
    s = math.exp(held(log_s))
    inside = band(s, 1 - config.clip_low, 1 + config.clip_high)
    clipped = float(inside * advantage < s * advantage)
    slope = 0.0 if clipped or abs(log_s) > 20 else -s * advantage / len(row)
    return -min(s * advantage, inside * advantage), [slope] * len(row), clipped


def gspo_token_by_hand(row, config):
    log_s = mean(row.ratios)
    s = math.exp(held(log_s))
    inside = band(s, 1 - config.clip_low, 1 + config.clip_high)
    clipped = [float(inside * a < s * a) for a in row.advantages]
    slopes = [0.0 if c or abs(log_s) > 20 else -s * a for c, a in zip(clipped, row.advantages, strict=True)]
    return [-min(s * a, inside * a) for a in row.advantages], slopes, clipped


def gmpo_exponents(row, config):
    """Each token's e_t, and whether the clip gave it."""
    advantage = mean(row.advantages)
    for ratio in row.ratios:
        limit = band(ratio, -config.clip_low, config.clip_high)
        takes_limit = (advantage > 0 and limit < ratio) or (advantage < 0 and limit > ratio)
        yield (limit if takes_limit else ratio) if advantage else 0.0, float(takes_limit)


def gmpo_exponent(row, config):
    return mean([exponent for exponent, _ in gmpo_exponents(row, config)])


def gmpo_by_hand(row, config):
    advantage, whole = mean(row.advantages), gmpo_exponent(row, config)
    clipped = [takes_limit for _, takes_limit in gmpo_exponents(row, config)]
    value = -advantage * math.exp(held(whole))
    slopes = [0.0 if c or abs(whole) > 20 else value / len(row) for c in clipped]
    return value, slopes, clipped


def cpgd_by_hand(row, config):
    low, high = math.log(1 - config.clip_low), math.log(1 + config.clip_high)
    values, slopes, clipped = [], [], []
    for ratio, advantage in zip(row.ratios, row.advantages, strict=True):
        limit = band(ratio, low, high)
        clipped.append(float(limit * advantage < ratio * advantage))
        growth = math.exp(held(ratio)) - 1
        values.append(-min(ratio * advantage, limit * advantage) + config.drift_coef * (growth - held(ratio)))
        slopes.append((0.0 if clipped[-1] else -advantage) + config.drift_coef * min(growth, config.drift_cap))
    return values, slopes, clipped


def cispo_by_hand(row, config):
    weights = [band(math.exp(held(ratio)), 1 - config.clip_low, 1 + config.clip_high) for ratio in row.ratios]
    clipped = [float(w != math.exp(held(ratio))) for w, ratio in zip(weights, row.ratios, strict=True)]
    slopes = [-w * a for w, a in zip(weights, row.advantages, strict=True)]
    return [slope * logprob for slope, logprob in zip(slopes, row.logprobs, strict=True)], slopes, clipped


def sapo_by_hand(row, config):
    values, slopes = [], []
    for ratio, advantage in zip(row.ratios, row.advantages, strict=True):
        tau = config.tau_positive if advantage > 0 else config.tau_negative
        r = math.exp(held(ratio))
        power = -tau * (r - 1)
        gate = 1 / (1 + math.exp(power)) if power < 700 else 0.0
        values.append(-4 / tau * gate * advantage)
        slopes.append(0.0 if abs(ratio) > 20 else -4 * gate * (1 - gate) * r * advantage)
    return values, slopes, None


def reinforce_by_hand(row, config):
    return (
        [-a * logprob for a, logprob in zip(row.advantages, row.logprobs, strict=True)],
        [-a for a in row.advantages],
        None,
    )


@dataclass(frozen=True)
class Loss:
    function: Callable
    config: type
    by_hand: Callable
    options: tuple[dict, ...]


LOSSES = {
    "gspo": Loss(gspo, GspoConfig, gspo_by_hand, ({}, {"clip_low": 0.2, "clip_high": 0.3})),
    "gspo_token": Loss(
        lambda inputs, config: gspo(inputs, config=config.model_copy(update={"level": "token"})),
        GspoConfig,
        gspo_token_by_hand,
        ({}, {"clip_low": 0.2, "clip_high": 0.3}),
    ),
    "gmpo": Loss(gmpo, GmpoConfig, gmpo_by_hand, ({}, {"clip_low": 0.1, "clip_high": 0.7})),
    "cpgd": Loss(cpgd, CpgdConfig, cpgd_by_hand, ({}, {"clip_high": 0.5, "drift_coef": 0.7, "drift_cap": 1.5})),
    "cispo": Loss(cispo, CispoConfig, cispo_by_hand, ({}, {"clip_low": 0.2, "clip_high": 0.3})),
    "sapo": Loss(sapo, SapoConfig, sapo_by_hand, ({}, {"tau_positive": 0.5, "tau_negative": 3.0})),
    "reinforce": Loss(reinforce, ReinforceLossConfig, reinforce_by_hand, ({},)),
}
CASES = [(name, options) for name, loss in LOSSES.items() for options in loss.options]


def rows_of(inputs):
    """Row number to its trained tokens' places and numbers."""
    found = {}
    for row, places in enumerate(inputs.mask_BT):
        at = places.nonzero().flatten().tolist()
        logprobs = inputs.logprobs_BT.detach()[row, at].tolist()
        old = inputs.old_logprobs_BT[row, at].tolist()
        ratios = [new - before for new, before in zip(logprobs, old, strict=True)]
        found[row] = at, Row(logprobs, ratios, inputs.advantages_BT[row, at].tolist())
    return found


def compare(name, inputs, **options):
    """Values, gradients of their sum, and metrics, row by row; returns what was clipped."""
    loss = LOSSES[name]
    config = loss.config(**options)
    output = loss.function(inputs, config=config)
    values = output.values
    trains = inputs.mask_BT if values.ndim == 2 else inputs.mask_BT.any(-1)
    values.masked_fill(~trains, 0.0).sum().backward()
    gradient, seen = inputs.logprobs_BT.grad, set()
    assert gradient[~inputs.mask_BT].abs().sum() == 0.0
    for number, (at, row) in rows_of(inputs).items():
        if not at:
            continue
        expected, slopes, clipped = loss.by_hand(row, config)
        where = (number, at) if values.ndim == 2 else (number,)
        assert values.detach()[where].tolist() == pytest.approx(expected, abs=EXACT, rel=1e-12)
        assert gradient[number, at].tolist() == pytest.approx(slopes, abs=EXACT, rel=1e-12)
        if clipped is not None:
            fraction = output.metrics["clip_fraction"]
            found = fraction[number, at].tolist() if fraction.ndim == 2 else float(fraction[number])
            assert found == clipped
            seen |= set(clipped) if isinstance(clipped, list) else {clipped}
        whole = output.metrics["ratio"].ndim == 1
        log_ratios = [mean(row.ratios)] if whole else row.ratios
        numbers = {
            "ratio": [math.exp(held(d)) for d in log_ratios],
            "approx_kl": [math.exp(held(d)) - 1 - held(d) for d in log_ratios],
        }
        counted = [gmpo_exponent(row, config)] if name == "gmpo" else log_ratios
        clamped = output.metrics["clamp_fraction"]
        found = clamped[number, at] if clamped.ndim == 2 else clamped[number]
        assert found.reshape(-1).tolist() == [float(abs(d) > 20) for d in counted]
        for metric, wanted in numbers.items():
            found = output.metrics[metric][number] if whole else output.metrics[metric][number, at]
            assert found.reshape(-1).tolist() == pytest.approx(wanted, abs=EXACT, rel=1e-9)
    return seen


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_values_gradients_and_metrics_equal_the_formula(name, options, seed):
    compare(name, random_inputs(seed), **options)


@pytest.mark.parametrize("name", ["gspo", "gspo_token", "gmpo", "cpgd"])
def test_the_test_data_meet_the_clip_and_its_inside(name):
    options = {"clip_low": 0.05, "clip_high": 0.05} if name.startswith("gspo") else {}
    assert {item for seed in range(4) for item in compare(name, random_inputs(seed), **options)} == {0.0, 1.0}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("gap", [50.0, -50.0, 1e4, -1e4])
def test_extreme_log_ratios_are_finite_and_equal_the_formula(name, gap):
    inputs = random_inputs()
    compare(name, replace(inputs, old_logprobs_BT=inputs.logprobs_BT.detach() - gap))
    assert bool(torch.isfinite(inputs.logprobs_BT.grad).all())


@pytest.mark.parametrize("name", LOSSES)
def test_nan_at_masked_tokens_does_not_reach_gradient_or_values(name):
    inputs = random_inputs()
    hole = inputs.old_logprobs_BT.masked_fill(~inputs.mask_BT, math.nan)
    compare(name, replace(inputs, old_logprobs_BT=hole))


@pytest.mark.parametrize("name", ["gspo_token", "cpgd", "cispo", "sapo", "reinforce"])
def test_at_ratio_1_every_token_loss_has_the_policy_gradient(name):
    inputs = random_inputs(scale=0.0)
    output = LOSSES[name].function(inputs, config=LOSSES[name].config())
    output.values[inputs.mask_BT].sum().backward()
    kept = inputs.mask_BT
    assert inputs.logprobs_BT.grad[kept].tolist() == pytest.approx((-inputs.advantages_BT[kept]).tolist(), abs=EXACT)


def one_advantage_a_row(inputs):
    return replace(inputs, advantages_BT=inputs.advantages_BT[:, :1].expand(inputs.mask_BT.shape))


def gradient_of(function, config, inputs, aggregation="seq_mean_token_mean"):
    leaf = inputs.logprobs_BT.detach().clone().requires_grad_()
    objective = Objective(lambda given: function(given, config=config), aggregation)
    share, _ = objective.share(replace(inputs, logprobs_BT=leaf), local_totals(inputs))
    share.backward()
    return leaf.grad


@pytest.mark.parametrize("clip_high", [4e-4, 0.3])
def test_both_forms_of_gspo_have_one_gradient_where_a_row_has_one_advantage(clip_high):
    inputs = one_advantage_a_row(random_inputs())
    sequence, token = (GspoConfig(clip_high=clip_high, level=level) for level in ("sequence", "token"))
    assert torch.allclose(gradient_of(gspo, sequence, inputs), gradient_of(gspo, token, inputs), atol=EXACT, rtol=0)


def test_gmpo_at_ratio_1_has_the_gradient_of_grpo():
    inputs = one_advantage_a_row(random_inputs(scale=0.0))
    expected = gradient_of(clip, ClipConfig(), inputs)
    assert torch.allclose(gradient_of(gmpo, GmpoConfig(), inputs), expected, atol=EXACT, rtol=0)


def test_sapo_keeps_a_gradient_where_clip_has_none():
    inputs = random_inputs()
    far = replace(
        inputs,
        old_logprobs_BT=inputs.logprobs_BT.detach() - 0.5,
        advantages_BT=torch.ones_like(inputs.advantages_BT),
    )
    kept = far.mask_BT
    assert gradient_of(clip, ClipConfig(), far)[kept].abs().sum() == 0.0
    soft, free = gradient_of(sapo, SapoConfig(), far)[kept], gradient_of(clip, ClipConfig(clip_high=9.0), far)[kept]
    assert bool((soft < 0).all()) and bool((soft > free).all())


def test_cpgd_pulls_back_where_there_is_no_advantage():
    inputs = random_inputs()
    idle = replace(inputs, advantages_BT=inputs.advantages_BT * 0.0)
    pull = gradient_of(cpgd, CpgdConfig(drift_coef=1.0, drift_cap=9.0), idle)
    ratio = (inputs.logprobs_BT.detach() - inputs.old_logprobs_BT).exp()
    kept = inputs.mask_BT
    assert torch.equal(pull[kept] > 0, ratio[kept] > 1)
    assert gradient_of(cpgd, CpgdConfig(drift_coef=0.0), idle).abs().sum() == 0.0


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (GspoConfig, {"clip_low": -1e-4}),
        (GspoConfig, {"level": "word"}),
        (GmpoConfig, {"clip_high": -0.1}),
        (CpgdConfig, {"clip_low": 1.0}),
        (CpgdConfig, {"drift_coef": -1.0}),
        (CispoConfig, {"clip_low": 1.1}),
        (SapoConfig, {"tau_positive": 0.0}),
    ],
)
def test_impossible_options_are_refused(config, options):
    with pytest.raises(ValidationError):
        config(**options)
