"""The gap of a step is that of a plain loop over its tokens, on one rank and on two."""

import math

import pytest
import torch
from lightrft_core.protocols import SoloWorld
from lightrft_engines.training.gapsums import BOUND, GapSums

from tests.engines.ranks import on_ranks
from tests.engines.test_strategies import OBJECTIVE, SHARES, batch_of, build


def measured(engine_BT, trainer_BT, mask_BT, *, cuts=1):
    sums = GapSums()
    for rows in torch.arange(len(mask_BT)).chunk(cuts):
        sums.add(engine_BT[rows], trainer_BT[rows], mask_BT[rows])
    return sums.over_ranks(SoloWorld())


@pytest.fixture
def tokens():
    draw = torch.Generator().manual_seed(0)
    trainer_BT = -torch.rand(12, 50, generator=draw)
    engine_BT = trainer_BT - torch.randn(12, 50, generator=draw) ** 3
    mask_BT = torch.rand(12, 50, generator=draw) < 0.7
    engine_BT[3] = float("nan")
    engine_BT[4, 0] = float("-inf")
    return engine_BT, trainer_BT, mask_BT


@pytest.mark.parametrize("cuts", [1, 5])
def test_it_is_that_of_a_plain_loop(tokens, cuts):
    engine_BT, trainer_BT, mask_BT = tokens
    places = [(row, place) for row in range(12) for place in range(50) if mask_BT[row, place]]
    gaps = [float(trainer_BT[at] - engine_BT[at]) for at in places if math.isfinite(engine_BT[at])]
    found, sizes = measured(*tokens, cuts=cuts), sorted(map(abs, gaps))
    exps = [math.exp(min(max(gap, -BOUND), BOUND)) for gap in gaps]
    assert found.tokens == len(gaps)
    assert found.mean == pytest.approx(sum(sizes) / len(sizes), rel=1e-5)
    assert found.abs_max == pytest.approx(sizes[-1])
    assert found.metrics()["gap/ratio_mean"] == pytest.approx(sum(exps) / len(exps), rel=1e-5)
    assert found.ratio_max == pytest.approx(max(exps), rel=1e-5)
    assert found.error == pytest.approx(sum(max(exp, 1 / exp) for exp in exps) / len(exps), rel=1e-5)
    for share in (0.5, 0.99):
        exact = sizes[math.ceil(share * len(sizes)) - 1]
        assert exact * (1 - 1e-5) <= found.quantile(share) <= exact * 1.012


def test_equal_log_probabilities_have_no_gap(tokens):
    _, trainer_BT, mask_BT = tokens
    assert measured(trainer_BT, trainer_BT, mask_BT).metrics() == {
        "gap/logprob_mean_abs": 0.0,
        "gap/logprob_p99_abs": 0.0,
        "gap/logprob_max_abs": 0.0,
        "gap/ratio_mean": 1.0,
        "gap/ratio_max": 1.0,
        "gap/prob_error": 1.0,
    }


def test_a_trainer_that_computes_no_number_is_no_small_gap(tokens):
    engine_BT, trainer_BT, mask_BT = tokens
    trainer_BT[0, mask_BT[0]] = float("nan")
    assert math.isnan(measured(engine_BT, trainer_BT, mask_BT).mean)


def test_without_tokens_there_is_none(tokens):
    engine_BT, trainer_BT, mask_BT = tokens
    assert measured(engine_BT, trainer_BT, torch.zeros_like(mask_BT)) is None
    assert measured(engine_BT[:0], trainer_BT[:0], mask_BT[:0]) is None


def test_a_gap_beyond_the_last_bin_is_counted_in_it():
    huge = measured(torch.zeros(1, 3), torch.tensor([[1e4, 0.0, 1e-9]]), torch.ones(1, 3, dtype=torch.bool))
    assert huge.quantile(1.0) == 1e4
    assert huge.quantile(0.5) < 1e-7
    assert huge.ratio_max == pytest.approx(math.exp(BOUND))


def gap_of_step(kit, folder, rows, use="single", **options):
    strategy, adapter = build(kit, folder, use, **options)
    batch = batch_of(kit, adapter, 0).rows(rows)
    strategy.fill(batch, frozenset({"old_logprobs", "ref_logprobs"}))
    places_BT = torch.arange(batch.mask_BT.shape[1]).expand(batch.mask_BT.shape)
    batch.engine_logprobs_BT = batch.old_logprobs_BT + places_BT * 0.01 - 0.03
    return strategy.gap(batch).metrics(), strategy.step(batch, OBJECTIVE).gap.metrics()


@pytest.mark.parametrize(
    ("use", "options"),
    [
        ("single", {}),
        ("single", {"balance": False}),
        ("single", {"sequence_parallel": 2}),
        ("fsdp2", {"tensor_parallel": 2}),
    ],
)
def test_two_ranks_measure_what_one_does(kit, qwen_folder, tmp_path, use, options):
    filled, stepped = gap_of_step(kit, qwen_folder, list(range(8)))
    assert filled == pytest.approx(stepped, abs=1e-5)
    found = on_ranks(lambda rank: gap_of_step(kit, qwen_folder, SHARES[2][rank], use, **options), 2, tmp_path)
    assert found[0] == found[1]
    for own in found[0]:
        assert own == pytest.approx(filled, rel=0.012, abs=1e-5)
