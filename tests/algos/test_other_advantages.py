"""rloo and reinforce against plain loops."""

import pytest
from lightrft_algos.advantages.reinforce import ReinforceConfig, reinforce
from lightrft_algos.advantages.rloo import RlooConfig, rloo
from lightrft_core.protocols import SoloWorld

from tests.algos.batches import batch_of

EXACT = 1e-9
REWARDS = [1.0, 0.0, 0.25, None, 2.0, -1.0, 0.1, 0.1, 0.1, 3.0]
GROUPS = [4, 9, 4, 4, 9, 4, 2, 2, 2, 7]


def test_rloo_is_the_reward_less_the_mean_of_the_others():
    found = rloo(batch_of(REWARDS, GROUPS, [2] * 10), SoloWorld(), config=RlooConfig()).advantages_BT
    for row, (reward, group) in enumerate(zip(REWARDS, GROUPS, strict=True)):
        others = [
            r for i, (r, g) in enumerate(zip(REWARDS, GROUPS, strict=True)) if g == group and r is not None and i != row
        ]
        expected = reward - sum(others) / len(others) if reward is not None and others else 0.0
        assert found[row].tolist() == pytest.approx([expected] * 2, abs=EXACT)


def test_rloo_counts_penalties_of_trained_tokens_on_ragged_rows_with_a_hole_and_a_masked_one():
    mask = [[True, True, False], [True, False, True], [False] * 3, [True, False, False]]
    penalties = [[-0.1, 0.2, 9.0], [0.5, 9.0, -0.25], [9.0] * 3, [0.3, 9.0, 9.0]]
    rewards = [1.0, -2.0, 4.0, 0.5]
    batch = batch_of(rewards, [0] * 4, [2, 3, 3, 1], mask=mask, token_rewards=penalties)
    found = rloo(batch, SoloWorld(), config=RlooConfig()).advantages_BT
    whole = [
        reward + sum(value for value, trains in zip(row, places, strict=True) if trains)
        for reward, row, places in zip(rewards, penalties, mask, strict=True)
    ]
    for row in range(4):
        expected = whole[row] - (sum(whole) - whole[row]) / 3
        assert found[row].tolist() == pytest.approx([expected * trains for trains in mask[row]], abs=EXACT)


def test_rloo_is_exactly_0_for_equal_rewards_and_a_group_of_one():
    found = rloo(batch_of(REWARDS, GROUPS, [1] * 10), SoloWorld(), config=RlooConfig()).advantages_BT
    assert found[6:, 0].tolist() == [0.0] * 4


def test_rloo_clips():
    found = rloo(batch_of([0.0, 5.0], [0, 0], [1, 1]), SoloWorld(), config=RlooConfig(clip=2.0)).advantages_BT
    assert found[:, 0].tolist() == [-2.0, 2.0]


def returns_by_hand(reward, token_rewards, mask, gamma):
    """Sums over later trained tokens, each discounted by the trained tokens between."""
    places = [t for t, trains in enumerate(mask) if trains]
    values = [0.0] * len(mask)
    for i, start in enumerate(places):
        for steps, later in enumerate(places[i:]):
            own = token_rewards[later] + (reward if later == places[-1] else 0.0)
            values[start] += gamma**steps * own
    return values


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_reinforce_is_the_discounted_return(gamma):
    mask = [[True, True, True, False], [True, False, True, True], [False] * 4, [True, False, False, False]]
    token_rewards = [[-0.1, 0.2, -0.3, 9.0], [0.5, 9.0, -0.5, 0.25], [9.0] * 4, [0.0] * 4]
    rewards = [1.0, -2.0, 5.0, None]
    batch = batch_of(rewards, [0, 0, 1, 1], [3, 4, 4, 4], mask=mask, token_rewards=token_rewards)
    found = reinforce(batch, SoloWorld(), config=ReinforceConfig(gamma=gamma)).advantages_BT
    for row in range(3):
        expected = returns_by_hand(rewards[row], token_rewards[row], mask[row], gamma)
        assert found[row].tolist() == pytest.approx(expected, abs=EXACT)
    assert found[3].tolist() == [0.0] * 4


def test_reinforce_without_token_rewards_gives_the_reward_to_every_token():
    found = reinforce(batch_of([2.0], [0], [3]), SoloWorld(), config=ReinforceConfig()).advantages_BT
    assert found.tolist() == [[2.0, 2.0, 2.0]]


def test_reinforce_clips():
    found = reinforce(batch_of([-7.0], [0], [2]), SoloWorld(), config=ReinforceConfig(clip=3.0)).advantages_BT
    assert found.tolist() == [[-3.0, -3.0]]
