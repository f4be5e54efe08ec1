"""A gap is the same however it was cut, its quantile is that of a sorted list, and a run warns and stops by it."""

import logging
import random

import pytest
from lightrft_core.errors import GapTooLarge
from lightrft_core.gap import BINS_PER_OCTAVE, SMALLEST, Gap, merged
from lightrft_core.sections import EngineGapSection, EvaluationSection, OptimSection, RunSection
from lightrft_core.testing.toys import ToyWorlds
from lightrft_core.watch import Watch
from pydantic import ValidationError

from tests.core.toy_run import Options, toy_run

QUIET = EvaluationSection(at_start=False, at_end=False)


def gap_of(sizes):
    """By a plain loop, from |d| alone."""
    import math

    counts: dict[int, int] = {}
    for size in sizes:
        place = max(0, math.floor(math.log2(max(size, SMALLEST) / SMALLEST) * BINS_PER_OCTAVE))
        counts[place] = counts.get(place, 0) + 1
    ratios = [math.exp(size) for size in sizes]
    return Gap(len(sizes), sum(sizes), max(sizes), sum(ratios), max(ratios), sum(ratios), tuple(sorted(counts.items())))


def flat(mean):
    return gap_of([mean] * 4)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 1.0])
def test_a_quantile_is_that_of_the_sorted_values_to_within_a_bin(share):
    draw = random.Random(3)
    sizes = [draw.expovariate(30) ** 2 for _ in range(1000)]
    exact = sorted(sizes)[max(0, round(share * 1000) - 1)]
    assert exact <= gap_of(sizes).quantile(share) <= exact * 1.011


def test_a_quantile_is_never_larger_than_the_largest_value():
    assert flat(0.3).quantile(0.99) == 0.3
    assert flat(0.0).quantile(0.99) == 0.0


def test_parts_of_a_step_are_one_gap_whatever_the_cut():
    draw = random.Random(1)
    sizes = [draw.random() for _ in range(300)]
    whole = gap_of(sizes)
    parts = merged([gap_of(sizes[:10]), None, gap_of(sizes[10:200]), gap_of(sizes[200:])])
    assert parts.metrics() == pytest.approx(whole.metrics())
    assert parts.counts == whole.counts
    assert Gap.from_json(whole.to_json()) == whole


def test_without_a_measured_token_there_is_no_gap():
    assert merged([None, Gap(0, 0, 0, 0, 0, 0)]) is None


@pytest.fixture
def watch():
    return Watch(RunSection(), OptimSection(), EngineGapSection(warn_above=0.1, stop_above=1.0))


def test_a_streak_of_large_gaps_is_warned_of_once(watch, caplog):
    with caplog.at_level(logging.WARNING):
        for step, mean in enumerate((0.05, 0.2, 0.3, 0.05, 0.4), 1):
            watch.gap(flat(mean), step)
    first, second = [record.getMessage() for record in caplog.records]
    assert first.startswith("step 2: engine and trainer differ by 0.2 nats per token on average (99% of the tokens by")
    assert "factor of 1.22), more than engine_gap.warn_above (0.1). Usual causes:" in first
    assert "correction" in first
    assert second.startswith("step 5: ")


def test_a_resumed_streak_is_not_warned_of_again(watch, caplog):
    watch.gap(flat(0.2), 1)
    again = Watch(RunSection(), OptimSection(), EngineGapSection(warn_above=0.1))
    again.load_state_dict(watch.state_dict())
    caplog.clear()
    again.gap(flat(0.2), 2)
    assert caplog.text == ""


def test_a_checkpoint_from_before_gaps_were_watched_is_taken(watch):
    watch.load_state_dict({"unscored_steps": 0, "skipped_updates": 0})


@pytest.mark.parametrize("mean", [1.5, float("nan"), float("inf")])
def test_a_gap_over_the_limit_stops(watch, mean):
    bad = Gap(1, mean, mean, 1, 1, 1)
    with pytest.raises(GapTooLarge, match=r"engine_gap.stop_above: step 3 was not trained.*more than 1\. Usual causes"):
        watch.limit(bad, 3)


def test_a_gap_at_the_limit_and_none_at_all_do_not_stop(watch):
    watch.limit(flat(1.0), 3)
    watch.limit(None, 3)


def test_a_stop_before_the_warning_is_refused():
    with pytest.raises(ValidationError, match="would stop before it warns"):
        EngineGapSection(warn_above=0.5, stop_above=0.2)


def test_two_ranks_stop_together_at_the_last_good_step(tmp_path):
    def work(world):
        run = toy_run(tmp_path, Options(steps=3, world=world, evaluation=QUIET))
        run.trainer._watch = Watch(RunSection(), OptimSection(), EngineGapSection(stop_above=1.0))
        run.parts.gauge = lambda batch: flat(2.0 if run.trainer.step_done == 1 else 0.1)
        with pytest.raises(GapTooLarge, match="step 2 was not trained"):
            run.trainer.run()
        return run

    one, other = ToyWorlds(2).run(work)
    assert one.logits == other.logits
    assert [run.trainer.step_done for run in (one, other)] == [1, 1]
    assert one.trainer.state() == other.trainer.state()
    assert one.parts.checkpoints.steps() == [1]
    assert [report.metrics["gap/logprob_mean_abs"] for report in one.tracker.reports] == [pytest.approx(0.1)]
