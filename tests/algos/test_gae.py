"""gae against a plain loop over trained tokens, and its whitening."""

import math
import statistics

import pytest
import torch
from lightrft_algos.advantages.gae import GaeConfig, gae
from lightrft_core.protocols import SoloWorld
from lightrft_core.testing.conformance import check_component
from lightrft_core.testing.toys import ToyWorlds

from tests.algos.batches import NAN, batch_of

EXACT = 1e-9
REWARDS = [1.0, 0.0, 0.25, None, 2.0, -1.0]
GROUPS = [0, 0, 1, 1, 2, 7]
LENGTHS = [6, 1, 4, 3, 5, 2]
MASK = [
    [True, True, False, True, True, True],  # a hole
    [True] + [False] * 5,
    [False] * 6,  # trains nothing
    [True] * 3 + [False] * 3,  # not scored
    [True] * 5 + [False],
    [False, True] + [False] * 4,
]


def batch(dtype=torch.float64):
    draws = torch.Generator().manual_seed(3)
    mask = torch.tensor(MASK)
    values = torch.randn(mask.shape, generator=draws, dtype=dtype).masked_fill(~mask, NAN)
    penalties = (-torch.rand(mask.shape, generator=draws, dtype=dtype)).masked_fill(~mask, NAN)
    return batch_of(REWARDS, GROUPS, LENGTHS, mask=MASK, token_rewards=penalties.tolist(), values_BT=values)


def by_hand(made, gamma, lambd):
    """Advantages and returns of each trained token, each as a double sum of its definition."""
    advantages, returns = {}, {}
    for row, reward in enumerate(REWARDS):
        places = [token for token, trains in enumerate(MASK[row]) if trains]
        if reward is None:
            continue
        value = [float(made.values_BT[row, token]) for token in places] + [0.0]
        earned = [float(made.token_rewards_BT[row, token]) for token in places]
        if places:
            earned[-1] += reward
        deltas = [earned[i] + gamma * value[i + 1] - value[i] for i in range(len(places))]
        for i, token in enumerate(places):
            total = sum((gamma * lambd) ** k * delta for k, delta in enumerate(deltas[i:]))
            advantages[row, token], returns[row, token] = total, total + value[i]
    return advantages, returns


def run(made, world=None, **options):
    return gae(made, world or SoloWorld(), config=GaeConfig(**options))


@pytest.mark.parametrize(("gamma", "lambd"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0), (0.0, 0.7)])
def test_equals_the_double_sum(gamma, lambd):
    made = batch()
    found = run(made, gamma=gamma, lambd=lambd)
    advantages, returns = by_hand(made, gamma, lambd)
    for row in range(len(REWARDS)):
        for token in range(6):
            assert float(found.advantages_BT[row, token]) == pytest.approx(advantages.get((row, token), 0.0), abs=EXACT)
            if (row, token) in returns:
                assert float(found.returns_BT[row, token]) == pytest.approx(returns[row, token], abs=EXACT)


def test_a_worked_example():
    made = batch_of([1.0], [0], [3], values_BT=torch.tensor([[0.5, 0.25, 0.75]], dtype=torch.float64))
    found = run(made, gamma=1.0, lambd=0.5)
    # deltas are 0.25 - 0.5, 0.75 - 0.25, 1 - 0.75
    assert found.advantages_BT.tolist() == [[-0.25 + 0.5 * 0.5 + 0.25 * 0.25, 0.5 + 0.5 * 0.25, 0.25]]
    assert found.returns_BT.tolist() == [[0.5625, 0.875, 1.0]]


def test_lambda_1_gives_the_return_less_the_value():
    made = batch_of([2.0], [0], [3], values_BT=torch.tensor([[0.5, 0.25, 0.75]], dtype=torch.float64))
    found = run(made, lambd=1.0)
    assert found.returns_BT.tolist() == [[2.0, 2.0, 2.0]]
    assert found.advantages_BT.tolist() == [[1.5, 1.75, 1.25]]


def test_a_row_that_is_not_scored_gives_0_and_its_own_values_as_returns():
    made = batch()
    found = run(made)
    assert found.advantages_BT[3].tolist() == [0.0] * 6
    assert found.returns_BT[3, :3].tolist() == made.values_BT[3, :3].tolist()


def test_a_fully_masked_row_gives_0():
    assert run(batch()).advantages_BT[2].tolist() == [0.0] * 6


def test_whitening_is_over_trained_tokens_and_leaves_the_returns():
    made = batch()
    plain, white = run(made), run(made, normalize=True)
    advantages, _ = by_hand(made, 1.0, 0.95)
    mean, spread = statistics.mean(advantages.values()), statistics.pstdev(advantages.values())
    for (row, token), value in advantages.items():
        assert float(white.advantages_BT[row, token]) == pytest.approx((value - mean) / spread, abs=EXACT)
    assert torch.equal(plain.returns_BT, white.returns_BT)


def test_whitening_is_global_over_ranks():
    made = batch()
    whole = run(made, normalize=True).advantages_BT
    shares = ([0, 3, 5], [1, 2, 4])
    parts = ToyWorlds(2).split(lambda rows, world: run(made.rows(rows), world, normalize=True).advantages_BT, shares)
    for rows, part in zip(shares, parts, strict=True):
        assert part.tolist() == [pytest.approx(row, abs=EXACT) for row in whole[rows].tolist()]


def test_clip_bounds_the_advantage_and_not_the_return():
    found = run(batch_of([9.0], [0], [1], values_BT=torch.zeros(1, 1, dtype=torch.float64)), clip=2.0)
    assert (found.advantages_BT.item(), found.returns_BT.item()) == (2.0, 9.0)


def test_float32_stays_float32():
    made = batch()
    made.rewards_B, made.values_BT = made.rewards_B.float(), made.values_BT.float()
    found = run(made)
    assert (found.advantages_BT.dtype, found.returns_BT.dtype) == (torch.float32, torch.float32)
    assert all(map(math.isfinite, found.returns_BT[made.mask_BT].tolist()))


def test_a_batch_without_values_is_an_error():
    with pytest.raises(ValueError, match="no values_BT"):
        run(batch_of([1.0], [0], [1]))


def test_passes_the_conformance_kit(plugins):
    component = plugins.find("advantage", "gae", where="test")
    results = check_component("advantage", component, plugins)
    assert [result for result in results if not result.ok] == []
    assert "values" in component.needs
