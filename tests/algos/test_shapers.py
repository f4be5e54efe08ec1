"""The overlong penalty and the clip of rewards."""

import pytest
from lightrft_algos.shapers.clip import ClipRewardConfig, ClipShaper
from lightrft_algos.shapers.overlong import OverlongConfig, OverlongShaper
from lightrft_core.errors import UserError
from lightrft_core.protocols import SoloWorld
from lightrft_core.sections import SamplerSection
from lightrft_core.testing.rollouts import group
from lightrft_core.testing.toys import toy_setup

LIMIT = 20


@pytest.fixture
def setup(tmp_path):
    return toy_setup(tmp_path, sampler=SamplerSection(max_new_tokens=LIMIT))


def by_hand(length, buffer, factor):
    """Equation 13 of the paper, case by case."""
    if length <= LIMIT - buffer:
        return 0.0
    return ((LIMIT - buffer) - length) / buffer * factor


@pytest.mark.parametrize("buffer", [1, 5, 20])
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_the_penalty_equals_the_formula(setup, buffer, factor):
    shaper = OverlongShaper(OverlongConfig(buffer=buffer, factor=factor), setup)
    lengths = list(range(1, LIMIT + 1))
    item = group("p", [0.5] * LIMIT, lengths)
    metrics = shaper.apply([item], SoloWorld())
    expected = [by_hand(length, buffer, factor) for length in lengths]
    assert [r.shaped_reward for r in item.rollouts] == pytest.approx([0.5 + p for p in expected], abs=1e-12)
    assert item.rollouts[-1].shaped_reward == pytest.approx(0.5 - factor)
    assert metrics["overlong/penalty"] == pytest.approx(sum(expected) / LIMIT)
    assert metrics["overlong/fraction"] == pytest.approx(buffer / LIMIT)


def test_the_buffer_is_a_fifth_of_the_limit_by_default(setup):
    shaper = OverlongShaper(OverlongConfig(), setup)
    assert shaper.penalty(16) == 0.0
    assert shaper.penalty(17) == -0.25
    assert shaper.penalty(20) == -1.0


def test_a_buffer_longer_than_the_limit_is_an_error(setup):
    with pytest.raises(UserError, match="buffer is 21, longer than the longest completion of 20 tokens"):
        OverlongShaper(OverlongConfig(buffer=21), setup)


def test_shapers_build_on_each_other(setup):
    item = group("p", [30.0, -30.0, 1.0], [20, 1, 1])
    OverlongShaper(OverlongConfig(), setup).apply([item], SoloWorld())
    metrics = ClipShaper(ClipRewardConfig(limit=5.0), setup).apply([item], SoloWorld())
    assert [rollout.shaped_reward for rollout in item.rollouts] == [5.0, -5.0, 1.0]
    assert [rollout.reward for rollout in item.rollouts] == [30.0, -30.0, 1.0]
    assert metrics == {"reward/clipped_fraction": pytest.approx(2 / 3)}


@pytest.mark.parametrize("limit", [0.5, 2.0, 10.0])
def test_the_clip_equals_its_formula(setup, limit):
    rewards = [-30.0, -2.0, -0.5, 0.0, None, 0.3, 2.0, 11.0, 1e9]
    item = group("p", rewards)
    metrics = ClipShaper(ClipRewardConfig(limit=limit), setup).apply([item], SoloWorld())
    expected = [None if reward is None else max(-limit, min(limit, reward)) for reward in rewards]
    assert [rollout.shaped_reward for rollout in item.rollouts] == expected
    outside = [reward is not None and abs(reward) > limit for reward in rewards]
    assert metrics == {"reward/clipped_fraction": pytest.approx(sum(outside) / 8, abs=1e-12)}


def test_unscored_rollouts_are_left_alone(setup):
    item = group("p", [None, 1.0], [20, 20])
    OverlongShaper(OverlongConfig(), setup).apply([item], SoloWorld())
    assert [rollout.shaped_reward for rollout in item.rollouts] == [None, 0.0]
