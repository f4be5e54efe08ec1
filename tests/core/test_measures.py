"""Metrics are sums and counts until all ranks are in."""

import pytest
from lightrft_core.data import Group, Prompt, Rollout, StepStats
from lightrft_core.measures import means, rollout_pairs, training_metrics
from lightrft_core.protocols import SoloWorld


def rollout(reward, finish="stop", **scores):
    return Rollout("p", 0, (1, 2), "x", (-0.1, -0.2), finish, 0, reward=reward, shaped_reward=reward, scores=scores)


def test_means_are_over_scored_rollouts_only():
    rollouts = [rollout(1.0, accuracy=1.0), rollout(0.0, accuracy=0.0), rollout(None, "length")]
    group = Group(Prompt("p", ()), (), rollouts)
    measured = means(rollout_pairs([group]), SoloWorld())
    assert measured["reward/mean"] == 0.5
    assert measured["accuracy"] == 0.5
    assert measured["reward/unscored_fraction"] == pytest.approx(1 / 3)
    assert measured["completion/truncated_fraction"] == pytest.approx(1 / 3)
    assert measured["group/zero_spread_fraction"] == 0.0


class TwoRanks(SoloWorld):
    """This rank plus one that measured something else."""

    def sum(self, values):
        return [value + other for value, other in zip(values, [3.0, 3.0, 10.0, 1.0], strict=True)]

    def gather(self, item):
        return [item, ["a", "b"]]


def test_ranks_with_other_names_and_counts_are_weighed_right():
    assert means({"a": (1.0, 1.0)}, TwoRanks()) == {"a": 4.0 / 4.0, "b": 10.0}


def test_training_metrics_leave_skipped_norms_out():
    stats = [
        StepStats({"clip_fraction": (1.0, 10.0), "gap/logprob": (2.0, 4.0)}, grad_norm=2.0, lr=0.1),
        StepStats({}, grad_norm=float("nan"), lr=0.05, skipped="gradient is not finite"),
    ]
    metrics = training_metrics(stats)
    assert metrics["train/clip_fraction"] == 0.1
    assert metrics["gap/logprob"] == 0.5
    assert metrics["train/grad_norm"] == 2.0
    assert metrics["train/skipped_steps"] == 1.0
    assert metrics["train/lr"] == 0.05
