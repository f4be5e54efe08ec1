"""truncated and best_of: which rows train."""

import random

import pytest
import torch
from lightrft_algos.selectors.best_of import BestOfConfig, best_of
from lightrft_algos.selectors.truncated import TruncatedRowsConfig, truncated
from lightrft_core.protocols import SoloWorld

from tests.algos.batches import batch_of


def rows(mask_BT):
    return mask_BT.any(-1).nonzero().flatten().tolist()


def numbered(given):
    """Every row with other completion ids."""
    given.completion_ids_BT = torch.arange(given.mask_BT.numel()).reshape(given.mask_BT.shape)
    return given


def test_rows_that_were_cut_off_train_nothing():
    given = batch_of([1.0, 0.0, 1.0], [0, 0, 0], [2, 3, 1], truncated_B=torch.tensor([False, True, False]))
    found = truncated(given, SoloWorld(), config=TruncatedRowsConfig())
    assert found.tolist() == [[True, True, False], [False] * 3, [True, False, False]]


def test_truncated_says_what_it_needs():
    with pytest.raises(ValueError, match="truncated_B"):
        truncated(batch_of([1.0], [0], [1]), SoloWorld(), config=TruncatedRowsConfig())


@pytest.mark.parametrize(("keep", "kept"), [(1, [1, 4]), (2, [1, 2, 4, 5]), (9, [0, 1, 2, 4, 5])])
def test_the_best_rows_of_each_group_train(keep, kept):
    given = numbered(batch_of([0.0, 2.0, 1.0, None, 5.0, 4.0], [7, 7, 7, 7, 3, 3], [2] * 6))
    assert rows(best_of(given, SoloWorld(), config=BestOfConfig(keep=keep))) == kept


@pytest.mark.parametrize("seed", range(6))
def test_the_selection_equals_a_sorted_list(seed):
    draws = random.Random(seed)
    num, keep = 17, draws.randint(1, 4)
    rewards = [None if draws.random() < 0.2 else draws.random() for _ in range(num)]
    groups = [draws.randint(0, 4) for _ in range(num)]
    lengths = [draws.randint(0, 3) for _ in range(num - 1)] + [3]
    given = numbered(batch_of(rewards, groups, lengths))
    found = best_of(given, SoloWorld(), config=BestOfConfig(keep=keep))
    for row in range(num):
        better = [
            other
            for other, (reward, group) in enumerate(zip(rewards, groups, strict=True))
            if group == groups[row] and None not in (reward, rewards[row]) and reward > rewards[row]
        ]
        trains = rewards[row] is not None and len(better) < keep
        assert found[row].tolist() == [trains and token < lengths[row] for token in range(3)]


def test_rows_below_the_least_reward_never_train():
    given = numbered(batch_of([0.0, 2.0, 1.0, 0.5], [0, 0, 1, 2], [1] * 4))
    assert rows(best_of(given, SoloWorld(), config=BestOfConfig(min_reward=1.0))) == [1, 2]


def test_exactly_so_many_train_where_rewards_tie_and_every_row_has_its_chance():
    chosen = set()
    for shift in range(40):
        given = numbered(batch_of([1.0] * 4, [0] * 4, [2] * 4))
        given.completion_ids_BT += 1000 * shift
        (row,) = rows(best_of(given, SoloWorld(), config=BestOfConfig()))
        chosen.add(row)
    assert chosen == {0, 1, 2, 3}


def test_ties_are_broken_alike_in_any_order_of_rows():
    given = numbered(batch_of([1.0] * 5, [0] * 5, [2] * 5))
    (row,) = rows(best_of(given, SoloWorld(), config=BestOfConfig()))
    order = [3, 1, 4, 0, 2]
    (moved,) = rows(best_of(given.rows(order), SoloWorld(), config=BestOfConfig()))
    assert order[moved] == row


def test_masked_tokens_stay_masked():
    given = batch_of([1.0, 0.0], [0, 0], [3, 3], mask=[[True, False, True], [True, True, True]])
    assert best_of(given, SoloWorld(), config=BestOfConfig()).tolist() == [[True, False, True], [False] * 3]
