"""The running norm and the length penalty against plain loops; their state through a resume."""

import json
import math
import statistics

import pytest
from lightrft_algos.shapers.length_penalty import LengthPenalty, LengthPenaltyConfig
from lightrft_algos.shapers.running_norm import RunningNorm, RunningNormConfig
from lightrft_core.protocols import SoloWorld, Stateful
from lightrft_core.sections import SamplerSection
from lightrft_core.testing.rollouts import group
from lightrft_core.testing.toys import ToyWorlds, toy_setup

EXACT = 1e-9
STEPS = [[1.0, 0.0, 3.0, None], [0.5, 0.5, -2.0, 8.0], [100.0, None, 0.25, 7.0]]


@pytest.fixture
def setup(tmp_path):
    return toy_setup(tmp_path, sampler=SamplerSection(max_new_tokens=20))


def shaped(shaper, rewards, world=None):
    item = group("p", rewards)
    metrics = shaper.apply([item], world or SoloWorld())
    return [rollout.shaped_reward for rollout in item.rollouts], metrics


def scored(rewards):
    return [reward for reward in rewards if reward is not None]


@pytest.mark.parametrize("minus_mean", [False, True])
def test_rewards_are_divided_by_the_deviation_of_everything_so_far(setup, minus_mean):
    shaper = RunningNorm(RunningNormConfig(minus_mean=minus_mean), setup)
    seen = []
    for rewards in STEPS:
        seen += scored(rewards)
        found, metrics = shaped(shaper, rewards)
        mean, std = statistics.fmean(seen), statistics.pstdev(seen)
        shift = mean if minus_mean else 0.0
        expected = [None if reward is None else (reward - shift) / (std + 1e-8) for reward in rewards]
        assert [value for value in found if value is not None] == pytest.approx(scored(expected), abs=EXACT)
        assert [value is None for value in found] == [reward is None for reward in rewards]
        assert metrics == {
            "reward/running_mean": pytest.approx(mean, abs=EXACT),
            "reward/running_std": pytest.approx(std, abs=EXACT),
        }


def test_a_resumed_run_goes_on_to_the_same_numbers(setup):
    whole = RunningNorm(RunningNormConfig(), setup)
    expected = [shaped(whole, rewards)[0] for rewards in STEPS][-1]
    killed = RunningNorm(RunningNormConfig(), setup)
    for rewards in STEPS[:2]:
        shaped(killed, rewards)
    assert isinstance(killed, Stateful)
    resumed = RunningNorm(RunningNormConfig(), setup)
    resumed.load_state_dict(json.loads(json.dumps(killed.state_dict())))
    assert shaped(resumed, STEPS[2])[0] == expected


def test_ranks_share_one_norm(setup):
    seen = scored(STEPS[0] + STEPS[1])

    def on_rank(rewards, world):
        return shaped(RunningNorm(RunningNormConfig(), setup), rewards, world)[0]

    found = ToyWorlds(2).split(on_rank, STEPS[:2])
    std = statistics.pstdev(seen) + 1e-8
    assert scored(found[0] + found[1]) == pytest.approx([reward / std for reward in seen], abs=EXACT)


@pytest.mark.parametrize("reward", [0.0, 0.1, 1 / 3, 1e8 + 0.1])
def test_rewards_that_never_differ_are_not_blown_up(setup, reward):
    shaper = RunningNorm(RunningNormConfig(), setup)
    for _ in range(3):
        assert shaped(shaper, [reward] * 7)[0] == [reward] * 7


def test_nothing_scored_changes_nothing(setup):
    shaper = RunningNorm(RunningNormConfig(), setup)
    before = shaper.state_dict()
    assert shaped(shaper, [None, None])[0] == [None, None]
    assert shaper.state_dict() == before


def test_it_takes_what_the_shapers_before_have_made(setup):
    item = group("p", [1.0, 2.0, 4.0])
    for rollout in item.rollouts:
        rollout.shaped_reward = rollout.reward * 10
    RunningNorm(RunningNormConfig(), setup).apply([item], SoloWorld())
    std = statistics.pstdev([10.0, 20.0, 40.0]) + 1e-8
    assert [r.shaped_reward for r in item.rollouts] == pytest.approx([10 / std, 20 / std, 40 / std], abs=EXACT)


def test_a_step_that_was_given_up_leaves_no_trace(setup):
    shaper = RunningNorm(RunningNormConfig(), setup)
    shaped(shaper, STEPS[0])
    before = shaper.state_dict()
    given_up = shaped(shaper, STEPS[1])[0]
    shaper.load_state_dict(before)
    assert shaped(shaper, STEPS[1])[0] == given_up


LENGTHS = [4, 10, 16, 20]
REWARDS = [1.0, 0.0, 1.0, 0.0]


def test_the_group_penalty_is_kimis(setup):
    item = group("p", REWARDS, LENGTHS)
    metrics = LengthPenalty(LengthPenaltyConfig(factor=0.2), setup).apply([item], SoloWorld())
    expected = []
    for reward, length in zip(REWARDS, LENGTHS, strict=True):
        value = 0.5 - (length - 4) / (20 - 4)
        expected.append(reward + 0.2 * (value if reward == 1.0 else min(0.0, value)))
    assert [r.shaped_reward for r in item.rollouts] == pytest.approx(expected, abs=EXACT)
    change = math.fsum(expected) / 4 - 0.5
    assert metrics == {"reward/length_penalty": pytest.approx(change, abs=EXACT)}


def test_a_short_wrong_answer_is_not_rewarded(setup):
    item = group("p", [0.0, 1.0], [2, 18])
    LengthPenalty(LengthPenaltyConfig(), setup).apply([item], SoloWorld())
    assert item.rollouts[0].shaped_reward == 0.0
    assert item.rollouts[1].shaped_reward == pytest.approx(0.95)


def test_siblings_of_one_length_are_left_alone(setup):
    item = group("p", [1.0, 0.0], [5, 5])
    LengthPenalty(LengthPenaltyConfig(), setup).apply([item], SoloWorld())
    assert [r.shaped_reward for r in item.rollouts] == [1.0, 0.0]


def test_what_is_right_is_told_by_accuracy_where_there_is_one(setup):
    item = group("p", [0.1, 0.1], [2, 18])
    item.rollouts[0].scores = {"accuracy": 1.0}
    item.rollouts[1].scores = {"accuracy": 0.0}
    LengthPenalty(LengthPenaltyConfig(), setup).apply([item], SoloWorld())
    assert [r.shaped_reward for r in item.rollouts] == pytest.approx([0.15, 0.05])


def test_the_linear_penalty_charges_every_token(setup):
    item = group("p", [1.0, None, 0.0], [5, 5, 20])
    LengthPenalty(LengthPenaltyConfig(shape="linear", factor=0.4), setup).apply([item], SoloWorld())
    assert [r.shaped_reward for r in item.rollouts] == [pytest.approx(0.9), None, pytest.approx(-0.4)]
