"""threshold, truncated and duplicate: which groups stay."""

import pytest
from lightrft_algos.filters.duplicate import DuplicateConfig, duplicate
from lightrft_algos.filters.threshold import ThresholdConfig, threshold
from lightrft_algos.filters.truncated import TruncatedConfig, truncated
from lightrft_core.errors import UserError
from lightrft_core.testing.rollouts import group
from pydantic import ValidationError


def of(texts=None, reasons=None, rewards=None, scores=None, shaped=None):
    num = len(texts or reasons or rewards)
    item = group("p", rewards or [0.0] * num)
    for index, rollout in enumerate(item.rollouts):
        rollout.text = texts[index] if texts else rollout.text
        rollout.finish_reason = reasons[index] if reasons else rollout.finish_reason
        rollout.scores = scores[index] if scores else {}
        rollout.shaped_reward = shaped[index] if shaped else rollout.reward
    return item


@pytest.mark.parametrize(("rewards", "kept"), [([1, 1, 1, 0], True), ([1] * 9 + [0], False), ([0] * 9 + [1], False)])
def test_threshold_keeps_what_is_neither_solved_nor_lost(rewards, kept):
    assert threshold(of(rewards=[float(r) for r in rewards]), config=ThresholdConfig()) is kept


def test_the_bounds_of_a_threshold_are_kept():
    item = of(rewards=[1.0, 0.0])
    assert threshold(item, config=ThresholdConfig(low=0.5, high=0.5))
    assert not threshold(item, config=ThresholdConfig(low=0.51, high=1.0))


def test_threshold_looks_at_accuracy_before_shaping():
    scores = [{"accuracy": 1.0}, {"accuracy": 0.0}]
    assert threshold(of(rewards=[0.1, 0.1], scores=scores, shaped=[-5.0, -5.0]), config=ThresholdConfig())


def test_threshold_drops_what_could_not_be_scored():
    assert not threshold(of(rewards=[None, None]), config=ThresholdConfig(low=0.0, high=1.0))


def test_threshold_names_the_metrics_there_are():
    with pytest.raises(UserError, match=r"filters\[threshold\].metric: no reward gives a score named 'acc'"):
        threshold(of(rewards=[1.0, 0.0], scores=[{"a": 1.0}, {"a": 0.0}]), config=ThresholdConfig(metric="acc"))


def test_a_threshold_that_keeps_nothing_is_refused():
    with pytest.raises(ValidationError, match=r"low \(0.9\) is above high \(0.8\): no group would be kept"):
        ThresholdConfig(low=0.9)


@pytest.mark.parametrize(
    ("reasons", "kept"),
    [
        (["stop", "stop"], True),
        (["stop", "length"], True),
        (["length", "length", "stop"], False),
        (["abort", "length", "stop"], False),
    ],
)
def test_truncated_drops_groups_of_which_more_than_half_was_cut_off(reasons, kept):
    assert truncated(of(reasons=reasons), config=TruncatedConfig()) is kept


def test_truncated_may_allow_none():
    assert not truncated(of(reasons=["stop"] * 9 + ["length"]), config=TruncatedConfig(max_fraction=0.0))


@pytest.mark.parametrize(
    ("texts", "min_distinct", "kept"),
    [
        (["a", "a", " a\n"], 2, False),
        (["a", "b", "a"], 2, True),
        (["a", "b", "a"], 3, False),
        (["a", "b"], 3, True),
        (["a"], 2, True),
    ],
)
def test_duplicate_counts_different_texts(texts, min_distinct, kept):
    assert duplicate(of(texts=texts), config=DuplicateConfig(min_distinct=min_distinct)) is kept
