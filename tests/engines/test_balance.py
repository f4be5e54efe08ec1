"""Parts of like weight, each item once, the same on every rank."""

import random

import pytest
from lightrft_engines.training.balance import partition


def sums(weights, num):
    return sorted(sum(weights[item] for item in part) for part in partition(weights, num))


def test_a_hand_worked_case():
    assert partition([8, 7, 6, 5, 4], 2) == [[0, 1], [2, 3, 4]] or sums([8, 7, 6, 5, 4], 2) == [14, 16]


@pytest.mark.parametrize("num", [1, 2, 3, 7])
def test_every_item_is_in_one_part(num):
    draw = random.Random(num)
    weights = [draw.expovariate(1 / 100) for _ in range(40)]
    parts = partition(weights, num)
    assert len(parts) == num
    assert sorted(item for part in parts for item in part) == list(range(40))


@pytest.mark.parametrize("seed", range(5))
def test_long_tailed_weights_come_out_closer_than_dealt_in_turn(seed):
    draw = random.Random(seed)
    weights = [draw.expovariate(1 / 100) for _ in range(64)]
    dealt = [sum(weights[start::8]) for start in range(8)]
    found = sums(weights, 8)
    assert max(found) <= sum(weights) / 8 * 1.05
    assert max(found) < max(dealt)


def test_more_parts_than_items_leave_some_empty():
    assert sorted(map(len, partition([3, 1], 4))) == [0, 0, 1, 1]


def test_nothing_to_part_is_empty_parts():
    assert partition([], 3) == [[], [], []]


def test_no_parts_is_a_mistake():
    with pytest.raises(ValueError, match="0 parts"):
        partition([1.0], 0)
