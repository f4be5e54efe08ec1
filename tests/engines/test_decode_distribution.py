"""Sampled tokens follow the distribution whose log-probabilities are reported."""

import math

import pytest
import torch
from lightrft_core.data import Sampling
from lightrft_engines.decode.distribution import draw, truncate, uniforms
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

NUM_DRAWS = 40_000
CUTS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "hot": {"temperature": 2.5},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.15},
    "all": {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
}


def logits(num_tokens: int = 150, scale: float = 1.5) -> torch.Tensor:
    return torch.randn(num_tokens, generator=torch.Generator().manual_seed(3)) * scale


def enumerated(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The distribution by transformers' own warpers, in the order of its `generate`."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    return warpers(torch.zeros(1, 1, dtype=torch.long), scores[None].double())[0].softmax(-1)


def drawn(scores: torch.Tensor, sampling: Sampling, num: int = NUM_DRAWS) -> tuple[torch.Tensor, torch.Tensor]:
    seeds = torch.arange(num) // 4
    positions = torch.arange(num) % 4
    return draw(scores.repeat(num, 1), uniforms(seeds, positions), sampling)


@pytest.mark.parametrize("cut", CUTS)
def test_draws_pass_a_chi_square_test_against_the_enumerated_distribution(cut):
    sampling = Sampling(max_new_tokens=1, **CUTS[cut])
    expected = enumerated(logits(), sampling) * NUM_DRAWS
    tokens, _ = drawn(logits(), sampling)
    counts = torch.bincount(tokens, minlength=len(expected)).double()
    assert counts[expected == 0].sum() == 0
    common = expected >= 5
    rest = (counts[~common].sum(), expected[~common].sum())
    chi_square = ((counts - expected).square() / expected)[common].sum()
    freedom = int(common.sum()) - 1
    if rest[1] >= 5:
        chi_square, freedom = chi_square + (rest[0] - rest[1]) ** 2 / rest[1], freedom + 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("cut", CUTS)
def test_reported_logprobs_are_those_of_the_distribution_that_was_drawn_from(cut):
    sampling = Sampling(max_new_tokens=1, **CUTS[cut])
    tokens, logprobs = drawn(logits(), sampling, 500)
    expected = enumerated(logits(), sampling).log()[tokens]
    assert torch.allclose(logprobs.double(), expected, atol=1e-5)


def test_a_nucleus_wider_than_the_first_look_is_found():
    flat = logits(5000, scale=0.01)
    sampling = Sampling(max_new_tokens=1, top_p=0.9)
    kept = truncate(flat[None], sampling)[0].isfinite()
    assert torch.equal(kept, enumerated(flat, sampling) > 0)


def test_the_likeliest_token_survives_every_cut():
    sampling = Sampling(max_new_tokens=1, top_p=1e-6, min_p=1.0)
    tokens, logprobs = drawn(logits(), sampling, 50)
    assert set(tokens.tolist()) == {int(logits().argmax())}
    assert logprobs.abs().max() == 0


def test_greedy_takes_the_likeliest_token_and_reports_it_at_temperature_one():
    sampling = Sampling(max_new_tokens=1, temperature=0, top_k=3, top_p=0.5)
    tokens, logprobs = drawn(logits(), sampling, 3)
    assert set(tokens.tolist()) == {int(logits().argmax())}
    assert torch.allclose(logprobs, logits().log_softmax(-1).max().expand(3))


@pytest.mark.parametrize("num_tokens", [64, 130, 256])
def test_greedy_takes_the_first_of_equals(num_tokens):
    scores = torch.randint(0, 4, (300, num_tokens), generator=torch.Generator().manual_seed(0)).float()
    tokens, _ = draw(scores, torch.zeros(300, dtype=torch.float64), Sampling(max_new_tokens=1, temperature=0))
    assert tokens.tolist() == [row.index(max(row)) for row in scores.tolist()]


def test_a_draw_depends_on_its_own_seed_and_position_alone():
    sampling = Sampling(max_new_tokens=1)
    scores = torch.randn(6, 70, generator=torch.Generator().manual_seed(0))
    seeds, positions = torch.tensor([5, 5, 2**62, 0, 1, 2]), torch.tensor([0, 1, 7, 0, 0, 3])
    together, _ = draw(scores.clone(), uniforms(seeds, positions), sampling)
    alone = [
        draw(scores[row : row + 1].clone(), uniforms(seeds[row, None], positions[row, None]), sampling)[0]
        for row in range(6)
    ]
    assert together.tolist() == [int(token) for token in alone]


def test_uniforms_are_spread_evenly_and_neighbouring_seeds_are_uncorrelated():
    values = uniforms(torch.arange(4000)[:, None], torch.arange(20)[None])
    assert values.dtype == torch.float64
    assert float(values.min()) >= 0 and float(values.max()) < 1
    counts = torch.histc(values.float(), 50, 0, 1)
    assert ((counts - 1600).square() / 1600).sum() < 49 + 4 * math.sqrt(98)
    for first, second in ((values[1:], values[:-1]), (values[:, 1:], values[:, :-1])):
        correlation = torch.corrcoef(torch.stack((first.flatten(), second.flatten())))[0, 1]
        assert correlation.abs() < 4 / math.sqrt(first.numel())


def test_uniforms_are_the_splitmix64_of_the_literature():
    state = (1234567 + 0 * 0x9E3779B97F4A7C15) % 2**64  # our position 1 is splitmix's first output of this seed
    mixed = (state + 0x9E3779B97F4A7C15) % 2**64
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
    mixed ^= mixed >> 31
    assert mixed == 6457827717110365317  # the generator's published first value
    assert float(uniforms(torch.tensor([1234567]), torch.tensor([1]))) == (mixed >> 11) / 2**53


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_tokens_without_mass_are_never_drawn_at_the_ends(uniform):
    scores = torch.full((1, 130), -math.inf)
    scores[0, 65:68] = 0.0
    tokens, logprobs = draw(scores, torch.tensor([uniform], dtype=torch.float64), Sampling(max_new_tokens=1))
    assert int(tokens) in (65, 66, 67)
    assert math.isclose(float(logprobs), -math.log(3), rel_tol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_give_nan_and_no_crash(bad):
    scores = torch.zeros(2, 130)
    scores[1, 7] = bad
    for sampling in (Sampling(1), Sampling(1, top_k=3, top_p=0.5, min_p=0.1), Sampling(1, temperature=0)):
        _, logprobs = draw(scores.clone(), torch.tensor([0.3, 0.3], dtype=torch.float64), sampling)
        assert math.isfinite(float(logprobs[0])) and not math.isfinite(float(logprobs[1]))
