"""k1, k2 and k3 against plain loops, and against the divergence that they estimate."""

import math

import pytest
import torch
from lightrft_algos.kls.k1 import K1Config, k1
from lightrft_algos.kls.k2 import K2Config, k2
from lightrft_algos.kls.k3 import K3Config, k3
from lightrft_core.objective import kl_output

EXACT = 1e-9
GAPS = [0.0, 1e-6, 0.3, -0.7, 5.0, -19.9, 19.9]
FORMULAS = {
    "k1": (k1, K1Config(), lambda d: -d, lambda d: 1.0),
    "k2": (k2, K2Config(), lambda d: d * d / 2, lambda d: -d),
    "k3": (k3, K3Config(), lambda d: math.exp(d) - d - 1, lambda d: 1 - math.exp(d)),
}


def estimate(name, logprobs, reference):
    function, config, _, _ = FORMULAS[name]
    return kl_output(function(logprobs, reference, config=config)).values


@pytest.mark.parametrize("name", FORMULAS)
def test_values_and_gradients_equal_the_formula(name):
    _, _, value_of, slope_of = FORMULAS[name]
    reference = torch.full((1, len(GAPS)), -2.0, dtype=torch.float64)
    logprobs = (reference - torch.tensor([GAPS], dtype=torch.float64)).requires_grad_()
    values = estimate(name, logprobs, reference)
    values.sum().backward()
    for token, _ in enumerate(GAPS):
        gap = float((reference - logprobs).detach()[0, token])
        assert float(values.detach()[0, token]) == pytest.approx(value_of(gap), rel=EXACT, abs=EXACT)
        assert float(logprobs.grad[0, token]) == pytest.approx(slope_of(gap), rel=EXACT, abs=EXACT)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("gap", [1e3, -1e3])
def test_extreme_gaps_stay_finite_in_float32(name, gap):
    logprobs = torch.zeros(1, 1, requires_grad=True)
    values = estimate(name, logprobs, torch.full((1, 1), gap))
    values.sum().backward()
    assert torch.isfinite(values).all() and torch.isfinite(logprobs.grad).all()


@pytest.mark.parametrize("gap", [20.1, -20.1, 1e4, -1e4])
def test_k3_holds_the_gap_within_20_and_counts_that(gap):
    logprobs = torch.tensor([[-30.0, -1.0, -1.5]], dtype=torch.float64, requires_grad=True)
    reference = logprobs.detach() + torch.tensor([[gap, 0.5, 20.0]], dtype=torch.float64)
    output = k3(logprobs, reference, config=K3Config())
    output.values.sum().backward()
    held = math.copysign(20.0, gap)
    expected = [math.exp(d) - d - 1 for d in (held, 0.5, 20.0)]
    assert output.values.detach()[0].tolist() == pytest.approx(expected, rel=EXACT)
    assert output.metrics["clamp_fraction"].tolist() == [[1.0, 0.0, 0.0]]
    assert logprobs.grad[0].tolist() == pytest.approx([0.0, 1 - math.exp(0.5), 1 - math.exp(20.0)], rel=EXACT)


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_the_mean_over_the_policy_is_the_divergence(name):
    policy = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    reference = torch.tensor([0.25, 0.25, 0.25, 0.25], dtype=torch.float64)
    divergence = sum(p * math.log(p / q) for p, q in zip(policy.tolist(), reference.tolist(), strict=True))
    estimates = estimate(name, policy.log()[None], reference.log()[None])[0]
    assert float((policy * estimates).sum()) == pytest.approx(divergence, abs=EXACT)


def test_the_mean_gradient_of_k2_is_that_of_the_divergence():
    logits = torch.tensor([0.4, -0.2, 0.9, 0.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    logprobs = logits.log_softmax(-1)
    (exact,) = torch.autograd.grad((logprobs.exp() * (logprobs - reference)).sum(), logits, retain_graph=True)
    estimates = k2(logprobs[None], reference[None], config=K2Config())[0]
    (found,) = torch.autograd.grad((logprobs.exp().detach() * estimates).sum(), logits)
    assert found.tolist() == pytest.approx(exact.tolist(), abs=EXACT)


def test_the_mean_gradient_of_k1_is_zero_hence_reward_only():
    logits = torch.tensor([0.4, -0.2, 0.9, 0.0], dtype=torch.float64, requires_grad=True)
    logprobs = logits.log_softmax(-1)
    estimates = k1(logprobs[None], torch.full((1, 4), math.log(0.25)), config=K1Config())[0]
    (found,) = torch.autograd.grad((logprobs.exp().detach() * estimates).sum(), logits)
    assert found.abs().max() < EXACT
