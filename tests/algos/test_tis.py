"""Truncated importance weights against a plain loop, with the gap as metrics."""

import math

import pytest
import torch
from lightrft_algos.corrections.tis import TisConfig, tis
from lightrft_core.protocols import SoloWorld

from tests.algos.batches import batch_of

EXACT = 1e-9
LENGTHS = [4, 2, 3, 1, 0]  # the last trains nothing
GAPS = [[0.1, -0.2, 1.5, 0.0], [-3.0, 0.3, 9.0, 9.0], [0.5, 0.5, 0.5, 9.0], [1e3, 9.0, 9.0, 9.0], [9.0] * 4]


@pytest.fixture
def batch():
    old = torch.full((5, 4), -1.0, dtype=torch.float64)
    engine = old - torch.tensor(GAPS, dtype=torch.float64)
    return batch_of([1.0] * 5, [0] * 5, LENGTHS, old_logprobs_BT=old, engine_logprobs_BT=engine)


@pytest.mark.parametrize("cap", [2.0, 1.0, 5.0])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_weights_equal_the_formula(batch, cap, level):
    weights = tis(batch, SoloWorld(), config=TisConfig(cap=cap, level=level)).weights_BT
    for row, length in enumerate(LENGTHS):
        for token in range(length):
            gap = GAPS[row][token] if level == "token" else sum(GAPS[row][:length])
            assert float(weights[row, token]) == pytest.approx(min(math.exp(min(gap, 20.0)), cap), abs=EXACT)
        assert weights[row, length:].tolist() == [1.0] * (4 - length)


def test_metrics_are_those_of_trained_tokens(batch):
    metrics = tis(batch, SoloWorld(), config=TisConfig()).metrics
    gaps = [gap for row, n in zip(GAPS, LENGTHS, strict=True) for gap in row[:n]]
    weights = [min(math.exp(min(gap, 20.0)), 2.0) for gap in gaps]
    assert metrics == {
        "correction/gap_mean": pytest.approx(sum(map(abs, gaps)) / 10),
        "correction/gap_max": pytest.approx(1e3),
        "correction/engine_kl": pytest.approx(-sum(gaps) / 10),
        "correction/capped_fraction": pytest.approx(sum(math.exp(min(gap, 20.0)) > 2.0 for gap in gaps) / 10),
        "correction/weight_mean": pytest.approx(sum(weights) / 10),
        "correction/clamp_fraction": pytest.approx(1 / 10),
    }


@pytest.mark.parametrize(("level", "share"), [("token", 1 / 10), ("sequence", 1 / 10)])
def test_log_ratios_beyond_20_are_counted(batch, level, share):
    metrics = tis(batch, SoloWorld(), config=TisConfig(level=level)).metrics
    assert metrics["correction/clamp_fraction"] == pytest.approx(share)


def test_it_says_what_it_needs():
    with pytest.raises(ValueError, match="log-probabilities"):
        tis(batch_of([1.0], [0], [1]), SoloWorld(), config=TisConfig())
