"""The high-entropy selector takes the global top share, exactly."""

import random

import pytest
import torch
from lightrft_algos.selectors.high_entropy import HighEntropyConfig, high_entropy
from lightrft_core.protocols import SoloWorld
from lightrft_core.testing.toys import ToyWorlds

from tests.algos.batches import batch_of


def batch_with(entropies, lengths):
    tensor = torch.tensor(entropies, dtype=torch.float64)
    return batch_of([1.0] * len(lengths), [0] * len(lengths), lengths, entropy_BT=tensor)


def by_hand(entropies, lengths, ratio):
    kept = sorted((e for row, n in zip(entropies, lengths, strict=True) for e in row[:n]), reverse=True)
    threshold = kept[max(1, round(ratio * len(kept))) - 1]
    return [[t < n and e >= threshold for t, e in enumerate(row)] for row, n in zip(entropies, lengths, strict=True)]


@pytest.mark.parametrize("ratio", [0.2, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_equals_a_sorted_list(ratio, seed):
    draws = random.Random(seed)
    lengths = [draws.randint(0, 9) for _ in range(11)] + [9]
    entropies = [[draws.choice([0.0, draws.random(), draws.random() * 1e-7, 3.0]) for _ in range(9)] for _ in lengths]
    found = high_entropy(batch_with(entropies, lengths), SoloWorld(), config=HighEntropyConfig(ratio=ratio))
    assert found.tolist() == by_hand(entropies, lengths, ratio)


def test_the_threshold_is_global_over_ranks():
    entropies = [[0.9, 0.8, 0.7, 0.6, 0.5], [0.1, 0.2, 0.3, 0.4, 0.05]]
    batch = batch_with(entropies, [5, 5])
    config = HighEntropyConfig(ratio=0.2)
    first, second = ToyWorlds(2).split(
        lambda rows, world: high_entropy(batch.rows(rows), world, config=config), ([0], [1])
    )
    assert first.tolist() == [[True, True, False, False, False]]
    assert second.tolist() == [[False] * 5]


def test_nothing_to_choose_from_gives_nothing():
    batch = batch_with([[1.0, 2.0]], [2])
    batch.mask_BT = batch.mask_BT & False
    assert high_entropy(batch, SoloWorld(), config=HighEntropyConfig()).tolist() == [[False, False]]


def test_equal_entropies_are_all_kept():
    found = high_entropy(batch_with([[1.0] * 5], [5]), SoloWorld(), config=HighEntropyConfig(ratio=0.2))
    assert found.tolist() == [[True] * 5]
