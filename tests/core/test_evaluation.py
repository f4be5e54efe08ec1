"""Evaluation: every row is scored, whatever the number of ranks, and the chosen metric comes first."""

import logging
from dataclasses import replace

import pytest
from lightrft_core.chosen import Chosen
from lightrft_core.data import Sampling
from lightrft_core.descriptors import RewardComponent
from lightrft_core.evaluation import Evaluator
from lightrft_core.plugins import Plugins
from lightrft_core.protocols import SoloWorld
from lightrft_core.scoring import RewardSet
from lightrft_core.sections import RewardSection
from lightrft_core.testing.toys import (
    ToyEngine,
    ToyEngineConfig,
    ToyTask,
    ToyTaskConfig,
    ToyWorlds,
    toy_setup,
)

TOY = RewardComponent(name="toy", target="lightrft_core.testing.toys:ToyReward", summary=".", is_isolated=False)


def evaluator(folder, world=None, *, name="toy", num_rows=10, silent=(), **changes):
    world = world or SoloWorld()
    setup = toy_setup(folder, world=world)
    policy = setup.require_strategy().policy
    for digit in range(7):  # seven of ten prompts are answered right
        policy.row((digit,), 0)[(digit + 1) % 10] = 50.0
    for digit in range(7, 10):
        policy.row((digit,), 0)[digit] = 50.0
    for digit in silent:  # the stop token at once
        policy.row((digit,), 0)[10] = 99.0
    model = setup.require_model()
    made = Evaluator(
        task=ToyTask(ToyTaskConfig(max_prompts=num_rows), setup),
        engine=ToyEngine(ToyEngineConfig(), setup),
        model=model,
        rewards=RewardSet([Chosen("reward", name, TOY, RewardSection())], Plugins(rows=()), world),
        sampling=Sampling(max_new_tokens=2, temperature=0.0, stop_token_ids=model.stop_token_ids),
        num_samples=1,
        metric=None,
        seed=0,
        world=world,
    )
    return replace(made, **changes)


def test_every_row_is_scored_once(tmp_path):
    metrics, groups = evaluator(tmp_path).measure(3)
    assert [group.prompt.id for group in groups] == [f"toy-{digit}" for digit in range(10)]
    assert metrics["eval/num_scored"] == 10
    assert metrics["eval/score"] == metrics["eval/reward"] == metrics["eval/toy"] == pytest.approx(0.7)
    assert metrics["eval/completion/length"] == 2.0
    assert not [name for name in metrics if "group" in name]


def test_several_samples_of_each_row(tmp_path):
    sampling = Sampling(max_new_tokens=1, temperature=1.0)
    metrics, groups = evaluator(tmp_path, num_samples=5, sampling=sampling).measure(0)
    assert metrics["eval/num_scored"] == 50
    assert all(len({rollout.seed for rollout in group.rollouts}) == 5 for group in groups)


@pytest.mark.parametrize(("num_rows", "shares"), [(10, [5, 5]), (9, [5, 4]), (1, [1, 0])])
def test_a_tail_that_does_not_divide_is_kept_on_two_ranks(tmp_path, num_rows, shares):
    alone, _ = evaluator(tmp_path, num_rows=num_rows).measure(0)
    ranks = ToyWorlds(2).run(lambda world: evaluator(tmp_path, world, num_rows=num_rows).measure(0))
    assert [len(groups) for _, groups in ranks] == shares
    for metrics, _ in ranks:
        assert metrics == pytest.approx(alone)
        assert metrics["eval/num_scored"] == num_rows


def test_two_evaluations_of_the_same_weights_are_equal(tmp_path):
    sampled = evaluator(tmp_path, sampling=Sampling(max_new_tokens=3, temperature=1.0))
    assert sampled.measure(0) == sampled.measure(9)


def test_accuracy_is_the_score_where_a_reward_gives_it(tmp_path):
    metrics, _ = evaluator(tmp_path, name="accuracy").measure(0)
    assert metrics["eval/accuracy"] == metrics["eval/score"] == pytest.approx(0.7)


@pytest.mark.parametrize(("metric", "name"), [("toy", "eval/toy"), ("completion/length", "eval/completion/length")])
def test_another_metric_may_be_the_score(tmp_path, metric, name):
    metrics, _ = evaluator(tmp_path, metric=metric).measure(0)
    assert metrics["eval/score"] == metrics[name]


def test_a_metric_that_no_reward_gives_is_named_and_never_taken_for_zero(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        metrics, _ = evaluator(tmp_path, metric="acuracy").measure(0)
    assert "eval/score" not in metrics
    assert "evaluation.metric: 'acuracy' was not measured, only " in caplog.text
    assert "toy" in caplog.text.rpartition("only ")[2]


def test_unscored_rows_are_left_out_and_counted(tmp_path):
    metrics, _ = evaluator(tmp_path, silent=[0]).measure(0)
    assert metrics["eval/num_scored"] == 9
    assert metrics["eval/unscored_fraction"] == pytest.approx(0.1)
    assert metrics["eval/score"] == pytest.approx(6 / 9)
