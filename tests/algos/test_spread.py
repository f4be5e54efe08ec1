"""Dynamic sampling looks at the task's metric, before shaping."""

import pytest
from lightrft_algos.filters.spread import SpreadConfig, spread
from lightrft_core.errors import UserError
from lightrft_core.testing.rollouts import group


def keeps(rewards, scores=None, shaped=None, **options):
    item = group("p", rewards)
    for index, rollout in enumerate(item.rollouts):
        rollout.scores = {} if scores is None else dict(scores[index])
        rollout.shaped_reward = shaped[index] if shaped else rollout.reward
    return spread(item, config=SpreadConfig(**options))


def test_equal_rewards_are_dropped_and_others_kept():
    assert not keeps([1.0, 1.0, 1.0])
    assert keeps([1.0, 0.0, 1.0])


def test_the_shaped_reward_is_not_looked_at():
    assert not keeps([1.0, 1.0], shaped=[1.0, 0.4])


def test_accuracy_is_looked_at_where_a_reward_gives_it():
    assert not keeps([1.0, 0.9], scores=[{"accuracy": 1.0}, {"accuracy": 1.0}])
    assert keeps([0.5, 0.5], scores=[{"accuracy": 1.0}, {"accuracy": 0.0}])


def test_a_named_metric_is_looked_at():
    scores = [{"accuracy": 1.0, "format": 0.0}, {"accuracy": 1.0, "format": 1.0}]
    assert keeps([1.0, 1.0], scores=scores, metric="format")


def test_partial_credit_spreads_too():
    assert keeps([0.3, 0.4])


def test_min_spread_is_the_least_difference_kept():
    assert not keeps([0.0, 0.4], min_spread=0.5)
    assert keeps([0.0, 0.5], min_spread=0.5)


def test_unscored_siblings_are_left_out():
    assert not keeps([1.0, None, 1.0])
    assert not keeps([None, None])
    assert not keeps([0.0, None])


def test_an_unknown_metric_is_an_error_that_lists_those_of_the_run():
    with pytest.raises(UserError) as caught:
        keeps([1.0, 0.0], scores=[{"accuracy": 1.0}, {"format": 0.0}], metric="acuracy")
    assert str(caught.value) == (
        "filters[spread].metric: no reward gives a score named 'acuracy'. Scores of this run: accuracy, format. "
        "Leave the metric out to take the reward."
    )
