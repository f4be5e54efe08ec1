"""reinforce_pp, reinforce_pp_baseline, cpgd and `normalize` against plain loops, on one rank and on two."""

import math
import statistics

import pytest
import torch
from lightrft_algos.advantages.cpgd import CpgdAdvantageConfig, cpgd
from lightrft_algos.advantages.group_norm import GroupNormConfig, group_norm
from lightrft_algos.advantages.reinforce import ReinforceConfig, reinforce
from lightrft_algos.advantages.reinforce_pp import ReinforcePPConfig, reinforce_pp
from lightrft_algos.advantages.reinforce_pp_baseline import ReinforcePPBaselineConfig, reinforce_pp_baseline
from lightrft_algos.advantages.rloo import RlooConfig, rloo
from lightrft_core.protocols import SoloWorld
from lightrft_core.testing.toys import ToyWorlds
from pydantic import ValidationError

from tests.algos.batches import batch_of

EXACT = 1e-9
REWARDS = [1.0, 0.0, 0.25, None, 2.0, -1.0, 0.5, 0.1, 0.1, 0.1, 3.0]
GROUPS = [4, 4, 4, 4, 9, 9, 9, 2, 2, 2, 7]
LENGTHS = [3, 1, 5, 2, 4, 0, 2, 1, 2, 3, 4]
PENALTIES = [[0.03 * ((row * 5 + token) % 7) - 0.1 for token in range(5)] for row in range(11)]


def batch(penalties=True):
    mask = [[token < length for token in range(5)] for length in LENGTHS]
    mask[2][1] = False
    return batch_of(REWARDS, GROUPS, LENGTHS, mask=mask, token_rewards=PENALTIES if penalties else None)


def places(given):
    """(row, token) of all trained tokens of scored rows."""
    return [(row, token) for row, token in given.mask_BT.nonzero().tolist() if REWARDS[row] is not None]


def whitened(values):
    """The formula over a dict of numbers by place."""
    mean = sum(values.values()) / len(values)
    variance = sum((value - mean) ** 2 for value in values.values()) / len(values)
    return {place: (value - mean) / math.sqrt(max(variance, 1e-8)) for place, value in values.items()}


def returns(given, gamma):
    """Each trained token's discounted return, time counted in trained tokens."""
    found = {}
    for row in range(len(REWARDS)):
        tokens = [token for r, token in places(given) if r == row]
        for i, start in enumerate(tokens):
            parts = [gamma**n * PENALTIES[row][token] for n, token in enumerate(tokens[i:])]
            found[row, start] = sum(parts) + gamma ** (len(tokens) - i - 1) * REWARDS[row]
    return found


def centred(given, row, weight=lambda mates: 1.0):
    """Reward and trained penalties against the siblings' mean."""
    own = {
        r: REWARDS[r] + sum(PENALTIES[r][t] for q, t in places(given) if q == r)
        for r in range(11)
        if REWARDS[r] is not None
    }
    if given.token_rewards_BT is None:
        own = {r: REWARDS[r] for r in own}
    mates = [value for r, value in own.items() if GROUPS[r] == GROUPS[row]]
    return (own[row] - sum(mates) / len(mates)) * weight(mates) if len(set(mates)) > 1 else 0.0


def check(found, expected):
    """Every entry [B, T]: the expected number at its place, 0 elsewhere."""
    for row in range(found.shape[0]):
        for token in range(found.shape[1]):
            assert float(found[row, token]) == pytest.approx(expected.get((row, token), 0.0), abs=EXACT)


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_reinforce_pp_is_the_whitened_return(gamma):
    given = batch()
    found = reinforce_pp(given, SoloWorld(), config=ReinforcePPConfig(gamma=gamma)).advantages_BT
    check(found, whitened(returns(given, gamma)))


def test_reinforce_that_normalises_is_reinforce_pp():
    given = batch()
    found = reinforce(given, SoloWorld(), config=ReinforceConfig(normalize=True, gamma=0.9)).advantages_BT
    check(found, whitened(returns(given, 0.9)))


def test_reinforce_pp_baseline_centres_by_group_and_scales_by_batch():
    given = batch()
    found = reinforce_pp_baseline(given, SoloWorld(), config=ReinforcePPBaselineConfig()).advantages_BT
    check(found, whitened({(row, token): centred(given, row) for row, token in places(given)}))


def test_group_norm_without_std_that_normalises_is_the_same():
    given = batch()
    found = group_norm(given, SoloWorld(), config=GroupNormConfig(std="none", normalize=True)).advantages_BT
    check(found, whitened({(row, token): centred(given, row) for row, token in places(given)}))


def test_rloo_that_normalises_whitens_the_difference_to_the_others():
    given = batch(penalties=False)
    size = {group: sum(r is not None for r, g in zip(REWARDS, GROUPS, strict=True) if g == group) for group in GROUPS}

    def leave_one_out(row):
        num = size[GROUPS[row]]
        return centred(given, row) * num / (num - 1) if num > 1 else 0.0

    found = rloo(given, SoloWorld(), config=RlooConfig(normalize=True)).advantages_BT
    check(found, whitened({(row, token): leave_one_out(row) for row, token in places(given)}))


@pytest.mark.parametrize(
    ("function", "config"),
    [(reinforce_pp, ReinforcePPConfig()), (reinforce_pp_baseline, ReinforcePPBaselineConfig())],
)
def test_statistics_are_those_of_all_ranks(function, config):
    given = batch()
    whole = function(given, SoloWorld(), config=config).advantages_BT
    for shares in (([0, 1, 2, 3, 10], [4, 5, 6, 7, 8, 9]), (list(range(11)), [])):
        found = ToyWorlds(2).split(lambda rows, world: function(given.rows(rows), world, config=config), shares)
        for part, rows in zip(found, shares, strict=True):
            assert torch.allclose(part.advantages_BT, whole[rows], atol=EXACT, rtol=0)


def test_whitened_tokens_have_mean_0_and_deviation_1():
    given = batch()
    found = reinforce_pp(given, SoloWorld(), config=ReinforcePPConfig()).advantages_BT
    values = [float(found[place]) for place in places(given)]
    assert statistics.fmean(values) == pytest.approx(0.0, abs=EXACT)
    assert statistics.pstdev(values) == pytest.approx(1.0, abs=EXACT)


@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e8 + 0.1])
def test_equal_rewards_everywhere_give_exactly_0(reward):
    given = batch_of([reward] * 7, [0] * 7, [2] * 7)
    for function, config in ((reinforce_pp, ReinforcePPConfig()), (reinforce_pp_baseline, ReinforcePPBaselineConfig())):
        assert function(given, SoloWorld(), config=config).advantages_BT.abs().sum() == 0.0


def test_nothing_that_trains_gives_zeros():
    given = batch_of([None, None], [0, 0], [1, 2])
    assert reinforce_pp(given, SoloWorld(), config=ReinforcePPConfig()).advantages_BT.abs().sum() == 0.0


def test_the_clip_comes_after_the_whitening():
    given = batch()
    free = reinforce_pp(given, SoloWorld(), config=ReinforcePPConfig()).advantages_BT
    found = reinforce_pp(given, SoloWorld(), config=ReinforcePPConfig(clip=0.5)).advantages_BT
    assert torch.equal(found, free.clamp(-0.5, 0.5))
    assert float(free.abs().max()) > 0.5


@pytest.mark.parametrize("std", ["group", "batch"])
def test_two_normalisations_in_a_row_are_refused(std):
    with pytest.raises(ValidationError, match=f"a second normalisation: std: {std} is one. Set std: none"):
        GroupNormConfig(std=std, normalize=True)


@pytest.mark.parametrize("eps", [1e-6, 1e-4, 0.5])
def test_eps_is_added_to_the_deviation(eps):
    found = group_norm(batch_of([1.0, 0.0], [0, 0], [1, 1]), SoloWorld(), config=GroupNormConfig(eps=eps))
    assert float(found.advantages_BT[0, 0]) == pytest.approx(0.5 / (math.sqrt(0.5) + eps), abs=EXACT)


@pytest.mark.parametrize("weight", ["std", "equal", "clip_filter"])
@pytest.mark.parametrize("max_weight", [3.0, 1.2])
def test_cpgd_weighs_groups_by_the_formula(weight, max_weight):
    given = batch(penalties=False)
    differing, groups = 2, 4  # 4 and 9 differ, 2 and 7 do not
    weights = {
        "std": lambda mates: 1 / (statistics.stdev(mates) + 1e-6),
        "equal": lambda mates: 1.0,
        "clip_filter": lambda mates: min(groups / differing, max_weight),
    }
    found = cpgd(given, SoloWorld(), config=CpgdAdvantageConfig(weight=weight, max_weight=max_weight)).advantages_BT
    check(found, {(row, token): centred(given, row, weights[weight]) for row, token in places(given)})


def test_cpgd_counts_groups_over_all_ranks():
    given = batch(penalties=False)
    config = CpgdAdvantageConfig(weight="clip_filter")
    whole = cpgd(given, SoloWorld(), config=config).advantages_BT
    shares = ([0, 1, 2, 3], [4, 5, 6, 7, 8, 9, 10])
    found = ToyWorlds(2).split(lambda rows, world: cpgd(given.rows(rows), world, config=config), shares)
    for part, rows in zip(found, shares, strict=True):
        assert torch.allclose(part.advantages_BT, whole[rows], atol=EXACT, rtol=0)


def test_cpgd_without_any_difference_gives_exactly_0():
    given = batch_of([0.1] * 3, [0, 0, 0], [1, 1, 1])
    for weight in ("std", "equal", "clip_filter"):
        found = cpgd(given, SoloWorld(), config=CpgdAdvantageConfig(weight=weight)).advantages_BT
        assert found.tolist() == [[0.0]] * 3
