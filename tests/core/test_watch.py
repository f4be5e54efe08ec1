"""Streaks of bad steps end a run; a good step begins the count anew."""

import logging

import pytest
from lightrft_core.data import StepStats
from lightrft_core.errors import RunFailed
from lightrft_core.sections import EngineGapSection, OptimSection, RunSection
from lightrft_core.watch import Watch

BAD, GOOD = {"reward/unscored_fraction": 0.5}, {"reward/unscored_fraction": 0.2}
SKIPPED = StepStats({}, grad_norm=float("nan"), lr=0.1, skipped="the gradient norm is nan")
DONE = StepStats({}, grad_norm=1.0, lr=0.1)


@pytest.fixture
def watch():
    return Watch(
        RunSection(max_unscored_fraction=0.2, unscored_patience=3),
        OptimSection(max_skipped_steps=2),
        EngineGapSection(),
    )


def test_unscored_steps_in_a_row_stop_the_run_and_say_where_the_reasons_are(watch):
    watch.scores(BAD)
    watch.scores(BAD)
    with pytest.raises(RunFailed) as caught:
        watch.scores(BAD)
    assert str(caught.value) == (
        "rewards: 50% of the samples could not be scored, in 3 steps in a row. The reasons are in the warnings above "
        "and in log.txt. Mend the reward, or raise run.max_unscored_fraction."
    )


def test_a_step_at_the_allowed_share_begins_the_count_anew(watch):
    for measured in (BAD, BAD, GOOD, BAD, BAD, {}):
        watch.scores(measured)
    watch.scores(BAD)


def test_skipped_updates_in_a_row_stop_the_run(watch, caplog):
    with caplog.at_level(logging.WARNING):
        watch.update(SKIPPED, 7)
    assert "step 7: update skipped, the gradient norm is nan" in caplog.text
    with pytest.raises(RunFailed, match=r"optim: 2 optimizer steps in a row were skipped.*Lower optim\.lr"):
        watch.update(SKIPPED, 8)


def test_an_update_that_went_well_begins_the_count_anew(watch):
    for stats in (SKIPPED, DONE, SKIPPED, DONE):
        watch.update(stats, 1)


def test_updates_that_only_lowered_a_loss_scale_neither_count_nor_end_a_row(watch, caplog):
    rescaled = StepStats({}, grad_norm=float("inf"), lr=0.1, skipped="the gradient norm is inf", rescaled=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            watch.update(rescaled, 1)
    assert caplog.text == ""
    watch.update(SKIPPED, 2)
    watch.update(rescaled, 3)
    with pytest.raises(RunFailed, match="2 optimizer steps in a row"):
        watch.update(SKIPPED, 4)


def test_a_resumed_run_goes_on_counting(watch):
    watch.scores(BAD)
    watch.scores(BAD)
    watch.update(SKIPPED, 1)
    again = Watch(
        RunSection(max_unscored_fraction=0.2, unscored_patience=3),
        OptimSection(max_skipped_steps=2),
        EngineGapSection(),
    )
    again.load_state_dict(watch.state_dict())
    with pytest.raises(RunFailed, match="in 3 steps in a row"):
        again.scores(BAD)
    with pytest.raises(RunFailed, match="2 optimizer steps"):
        again.update(SKIPPED, 2)
