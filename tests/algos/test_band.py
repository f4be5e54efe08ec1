"""The masking band against a plain loop, and what truncated sampling makes of importance weights."""

import math

import pytest
import torch
from lightrft_algos.corrections.band import BandConfig, band
from lightrft_algos.corrections.tis import TisConfig, tis
from lightrft_core.protocols import SoloWorld
from lightrft_core.testing.toys import ToyWorlds
from pydantic import ValidationError

from tests.algos.batches import batch_of

EXACT = 1e-9
LENGTHS = [4, 2, 3, 1, 2, 0]  # the last trains nothing
GAPS = [[0.1, -0.2, 1.7, 0.0], [-3.0, 0.3, 9, 9], [0.5, 0.6, 0.7, 9], [1e3, 9, 9, 9], [-0.1, 0.1, 9, 9], [9, 9, 9, 9]]


@pytest.fixture
def batch():
    old = torch.full((6, 4), -1.0, dtype=torch.float64)
    engine = old - torch.tensor(GAPS, dtype=torch.float64)
    return batch_of([1.0] * 6, [0] * 6, LENGTHS, old_logprobs_BT=old, engine_logprobs_BT=engine)


def ratio(row, token, level):
    gaps = GAPS[row][: LENGTHS[row]]
    log = {"token": gaps[token], "sequence": sum(gaps), "geometric": sum(gaps) / len(gaps)}[level]
    return math.exp(max(-20.0, min(20.0, log)))


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
@pytest.mark.parametrize("weigh", [True, False])
@pytest.mark.parametrize(("low", "high"), [(0.5, 5.0), (0.0, 3.0), (0.9, 1.2)])
def test_what_is_outside_the_band_does_not_train(batch, level, weigh, low, high):
    found = band(batch, SoloWorld(), config=BandConfig(level=level, weigh=weigh, low=low, high=high))
    for row, length in enumerate(LENGTHS):
        for token in range(4):
            value = ratio(row, token, level) if token < length else None
            stays = value is not None and low <= value <= high
            assert bool(found.mask_BT[row, token]) is stays
            if stays:
                assert float(found.weights_BT[row, token]) == pytest.approx(value if weigh else 1.0, abs=EXACT)


def test_the_gap_and_the_share_left_out_are_metrics(batch):
    metrics = band(batch, SoloWorld(), config=BandConfig()).metrics
    gaps = [gap for row, n in zip(GAPS, LENGTHS, strict=True) for gap in row[:n]]
    outside = [not 0.5 <= math.exp(max(-20.0, min(20.0, gap))) <= 5.0 for gap in gaps]
    assert metrics["correction/masked_fraction"] == pytest.approx(sum(outside) / len(gaps))
    assert metrics["correction/gap_max"] == pytest.approx(1e3)
    assert metrics["correction/clamp_fraction"] == pytest.approx(1 / len(gaps))
    assert metrics["correction/engine_kl"] == pytest.approx(-sum(gaps) / len(gaps))


def test_metrics_are_those_of_all_ranks(batch):
    whole = band(batch, SoloWorld(), config=BandConfig()).metrics
    shares = ([0, 1], [2, 3, 4, 5])
    for found in ToyWorlds(2).split(lambda rows, world: band(batch.rows(rows), world, config=BandConfig()), shares):
        assert found.metrics == pytest.approx(whole, abs=EXACT)


def test_a_band_without_width_is_refused():
    with pytest.raises(ValidationError, match="low and high are both 1"):
        BandConfig(low=1.0, high=1.0)


CUTS = {  # temperature, top_k, top_p, min_p
    "temperature": (0.6, 9, 1.0, 0.0),
    "top_k": (1.0, 3, 1.0, 0.0),
    "top_p": (1.0, 9, 0.7, 0.0),
    "min_p": (1.0, 9, 1.0, 0.4),
    "all": (0.8, 4, 0.9, 0.1),
}
LOGITS = [2.0, 1.5, 1.0, 0.2, -1.0]


def engine_distribution(temperature, top_k, top_p, min_p):
    """What an engine samples from: the likeliest tokens at a temperature, renormalised."""
    chances = torch.tensor([value / temperature for value in LOGITS], dtype=torch.float64).softmax(-1).tolist()
    ranked = sorted(range(5), key=lambda token: -chances[token])
    kept, mass = [], 0.0
    for token in ranked[:top_k]:
        if mass >= top_p or chances[token] < min_p * chances[ranked[0]]:
            break
        kept.append(token)
        mass += chances[token]
    return {token: chances[token] / mass for token in kept}, mass


@pytest.mark.parametrize("cut", CUTS)
def test_weighted_samples_have_the_expectation_of_the_trainers_distribution_over_what_was_kept(cut):
    """By enumeration: E_engine[w f] = sum over kept tokens of p f, with p at the sampler's temperature."""
    temperature, *bounds = CUTS[cut]
    served, mass = engine_distribution(temperature, *bounds)
    policy = torch.tensor([value / temperature for value in LOGITS], dtype=torch.float64).log_softmax(-1)
    tokens = list(served)
    old = policy[tokens].unsqueeze(1)
    engine = torch.tensor([[math.log(served[token])] for token in tokens], dtype=torch.float64)
    num = len(tokens)
    given = batch_of([1.0] * num, [0] * num, [1] * num, old_logprobs_BT=old, engine_logprobs_BT=engine)
    weights = tis(given, SoloWorld(), config=TisConfig(cap=100.0)).weights_BT[:, 0].tolist()
    values = [3.0, -1.0, 0.5, 7.0, 2.0]
    found = sum(served[token] * weight * values[token] for token, weight in zip(tokens, weights, strict=True))
    assert found == pytest.approx(sum(policy.exp()[token].item() * values[token] for token in tokens), abs=EXACT)
    assert weights == pytest.approx([mass] * num, abs=EXACT)
