"""Trackers and callbacks: told of everything, they accept it."""

import math
from pathlib import Path
from typing import Any

from lightrft_core.data import StepReport
from lightrft_core.testing import rollouts
from lightrft_core.testing.results import Case, Check
from lightrft_core.testing.toys import toy_setup

METRICS = {"reward/mean": 0.5, "train/loss": math.nan, "train/grad_norm": math.inf, "a/b/c": -1e-12}


def build(case: Case) -> Any:  # Any: the tracker or callback under test
    """A fresh one, writing into a folder that is thrown away."""
    return case.target(case.options, case.given or toy_setup(case.run_dir))


def reports() -> list[StepReport]:
    """With rollouts, without any, and with numbers that are none."""
    seconds = {"generate": 0.1, "train": 0.2}
    return [
        StepReport(step=1, metrics=METRICS, seconds=seconds, groups=rollouts.groups()),
        StepReport(step=2, metrics={}, seconds={}),
    ]


def steps_and_evaluations_are_accepted(case: Case) -> None:
    """NaN and infinity among the metrics, rollouts or none; then the end."""
    tracker = build(case)
    for report in reports():
        tracker.log(report)
        tracker.log_evaluation(report.step, {"eval/score": 0.25, "eval/reward": math.nan})
    tracker.close("done")


def end_without_a_step_is_accepted(case: Case) -> None:
    """A run may fail before its first step."""
    build(case).close("failed")


def every_event_is_accepted(case: Case) -> None:
    """Steps, evaluations, saves and the end."""
    callback = build(case)
    for report in reports():
        callback.on_step(report)
        callback.on_evaluation(report.step, {"eval/score": 0.25})
        callback.on_save(report.step, Path(case.run_dir) / "checkpoints" / f"step_{report.step:06d}")
    callback.on_end("done")


def end_without_a_step_is_an_event_too(case: Case) -> None:
    """A run may fail before its first step."""
    build(case).on_end("failed")


TRACKER: tuple[Check, ...] = (steps_and_evaluations_are_accepted, end_without_a_step_is_accepted)
CALLBACK: tuple[Check, ...] = (every_event_is_accepted, end_without_a_step_is_an_event_too)
