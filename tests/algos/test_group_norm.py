"""group_norm against plain loops, and at its edges."""

import math
import statistics

import pytest
import torch
from lightrft_algos.advantages.group_norm import GroupNormConfig, group_norm
from lightrft_core.protocols import SoloWorld
from lightrft_core.testing.toys import ToyWorlds

from tests.algos.batches import batch_of

EXACT = 1e-9
REWARDS = [1.0, 0.0, 0.25, None, 2.0, -1.0, 0.5, 0.1, 0.1, 0.1, 3.0]
GROUPS = [4, 4, 4, 4, 9, 9, 9, 2, 2, 2, 7]
LENGTHS = [3, 1, 5, 2, 4, 4, 2, 1, 2, 3, 4]


def by_hand(rewards, groups, std):
    """The formula, one row at a time."""
    scored = [r for r in rewards if r is not None]
    values = []
    for reward, group in zip(rewards, groups, strict=True):
        mates = [r for r, g in zip(rewards, groups, strict=True) if g == group and r is not None]
        if reward is None or len(set(mates)) == 1:
            values.append(0.0)
            continue
        centred = reward - sum(mates) / len(mates)
        if std == "group":
            values.append(centred / (statistics.stdev(mates) + 1e-6))
        elif std == "batch":
            values.append(centred / (statistics.stdev(scored) + 1e-6))
        else:
            values.append(centred)
    return values


def advantages(batch, world=None, **options):
    return group_norm(batch, world or SoloWorld(), config=GroupNormConfig(**options)).advantages_BT


@pytest.mark.parametrize("std", ["group", "batch", "none"])
def test_equals_the_formula(std):
    batch = batch_of(REWARDS, GROUPS, LENGTHS)
    found = advantages(batch, std=std)
    for row, expected in enumerate(by_hand(REWARDS, GROUPS, std)):
        for token in range(5):
            wanted = expected if token < LENGTHS[row] else 0.0
            assert float(found[row, token]) == pytest.approx(wanted, abs=EXACT)


@pytest.mark.parametrize("std", ["group", "batch", "none"])
def test_scattered_siblings_are_found_by_number(std):
    order = [10, 4, 0, 7, 3, 5, 1, 8, 6, 2, 9]
    rewards, groups = [REWARDS[i] for i in order], [GROUPS[i] for i in order]
    found = advantages(batch_of(rewards, groups, [1] * 11), std=std)[:, 0].tolist()
    assert found == pytest.approx(by_hand(rewards, groups, std), abs=EXACT)


@pytest.mark.parametrize("std", ["group", "batch", "none"])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e8 + 0.1, -7.7])
def test_equal_rewards_give_exactly_0_whatever_rounding_makes_of_their_mean(std, reward):
    batch = batch_of([reward] * 7 + [0.0, 1.0], [0] * 7 + [1, 1], [2] * 9)
    assert advantages(batch, std=std)[:7].tolist() == [[0.0, 0.0]] * 7


def test_equal_rewards_give_exactly_0_in_float32_too():
    batch = batch_of([0.1] * 7, [0] * 7, [1] * 7)
    batch.rewards_B = batch.rewards_B.float()
    found = advantages(batch)
    assert found.dtype == torch.float32
    assert found.tolist() == [[0.0]] * 7


def test_a_group_of_one_gives_0():
    assert advantages(batch_of([5.0], [0], [3])).tolist() == [[0.0, 0.0, 0.0]]


def test_a_group_with_one_scored_row_gives_0():
    assert advantages(batch_of([5.0, None, None], [0, 0, 0], [1, 1, 1])).tolist() == [[0.0], [0.0], [0.0]]


def test_a_group_without_any_score_gives_0():
    assert advantages(batch_of([None, None], [0, 0], [1, 1])).tolist() == [[0.0], [0.0]]


def test_a_fully_masked_row_counts_in_its_group_and_trains_nothing():
    batch = batch_of([1.0, 0.0], [0, 0], [2, 2], mask=[[True, True], [False, False]])
    expected = 0.5 / (math.sqrt(0.5) + 1e-6)
    found = advantages(batch)
    assert found[0].tolist() == pytest.approx([expected, expected], abs=EXACT)
    assert found[1].tolist() == [0.0, 0.0]


def test_token_rewards_of_trained_tokens_count():
    mask = [[True, True, False], [True, False, True], [True, True, True]]
    token_rewards = [[-0.1, -0.2, 99.0], [-0.3, 99.0, -0.4], [0.0, 0.0, 0.0]]
    batch = batch_of([1.0, 1.0, 0.0], [0, 0, 0], [3, 3, 3], mask=mask, token_rewards=token_rewards)
    found = advantages(batch)
    for row, expected in enumerate(by_hand([0.7, 0.3, 0.0], [0, 0, 0], "group")):
        assert float(found[row, 0]) == pytest.approx(expected, abs=EXACT)


def test_clip_bounds_the_advantage():
    rewards = [0.0] * 9 + [1.0]
    found = advantages(batch_of(rewards, [0] * 10, [1] * 10), clip=0.5)[:, 0].tolist()
    expected = [max(-0.5, min(0.5, value)) for value in by_hand(rewards, [0] * 10, "group")]
    assert found == pytest.approx(expected, abs=EXACT)
    assert found[-1] == 0.5


def test_batch_std_is_that_of_all_ranks():
    batch = batch_of(REWARDS, GROUPS, LENGTHS)
    whole = advantages(batch, std="batch")
    shares = ([0, 1, 2, 3], [4, 5, 6, 7, 8, 9, 10])
    parts = ToyWorlds(2).split(lambda rows, world: advantages(batch.rows(rows), world, std="batch"), shares)
    assert torch.cat(parts).tolist() == [pytest.approx(row, abs=EXACT) for row in whole.tolist()]


def test_the_shift_of_all_rewards_does_not_matter():
    base = advantages(batch_of([1.0, 0.0, 0.5], [0] * 3, [1] * 3))
    moved = advantages(batch_of([1001.0, 1000.0, 1000.5], [0] * 3, [1] * 3))
    assert moved.flatten().tolist() == pytest.approx(base.flatten().tolist(), abs=EXACT)
