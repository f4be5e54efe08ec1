"""The loop over steps, with toys: stops, saves, resumes, the proof of a sync, and streaks that end a run."""

import math
from dataclasses import replace

import pytest
from lightrft_core.data import StepStats
from lightrft_core.errors import NothingToTrain, RunFailed, StoppedEarly
from lightrft_core.filtering import Filters
from lightrft_core.kl_term import KLTerm
from lightrft_core.protocols import SoloWorld
from lightrft_core.sections import CheckpointSection, EvaluationSection, KLSection, OptimSection, RunSection

from tests.core.toy_run import NotingEngine, NotingStrategy, Options, toy_run

QUIET = EvaluationSection(at_start=False, at_end=False)


class Listener:
    """A callback that counts what it is told, and keeps the count in checkpoints."""

    def __init__(self):
        self.told = []

    def on_step(self, report):
        self.told.append(f"step {report.step}")

    def on_evaluation(self, step, metrics):
        self.told.append(f"evaluation {step}")

    def on_save(self, step, path):
        self.told.append(f"save {step} {path.name}")

    def on_end(self, status):
        self.told.append(status)

    def state_dict(self):
        return {"told": len(self.told)}

    def load_state_dict(self, state):
        self.told = ["loaded"] * state["told"]


def without_time(report):
    return {name: value for name, value in report.metrics.items() if name != "throughput/tokens_per_s"}


class MeasuresKL(NotingStrategy):
    def step(self, minibatch, objective):
        stats = super().step(minibatch, objective)
        return replace(stats, metrics={**stats.metrics, "kl": (0.4, 2.0)})


@pytest.mark.parametrize("moment", ["generate", "score", "collate", "fill"])
def test_a_stop_before_training_gives_the_step_up_and_undoes_its_draws(tmp_path, moment):
    run = toy_run(tmp_path, Options(steps=4, evaluation=QUIET, max_time=100.0))
    run.trainer.step()
    before, weights, started = run.trainer.state(), run.logits, len(run.journal.events)

    def stop(event):
        if event == moment:
            run.clock.now = 1000.0

    run.journal.on = stop
    with pytest.raises(StoppedEarly, match=r"stopped after step 1 \(time limit\)"):
        run.trainer.run()
    assert run.trainer.state() == before
    assert run.logits == weights
    assert "train" not in run.journal.events[started:]
    assert run.parts.checkpoints.newest().step == 1


def test_a_stop_during_training_finishes_the_step(tmp_path):
    run = toy_run(tmp_path, Options(steps=4, evaluation=QUIET, max_time=100.0, minibatches=2))

    def stop(event):
        if event == "train":
            run.clock.now = 1000.0

    run.journal.on = stop
    with pytest.raises(StoppedEarly, match="stopped after step 1"):
        run.trainer.run()
    assert run.journal.events.count("train") == 2
    assert run.journal.events[-1] == "sync"
    assert [report.step for report in run.tracker.reports] == [1]
    assert run.parts.checkpoints.newest().step == 1


def test_a_stop_during_the_last_step_is_no_stop(tmp_path):
    run = toy_run(tmp_path, Options(steps=1, max_time=100.0))

    def stop(event):
        if event == "train":
            run.clock.now = 1000.0

    run.journal.on = stop
    run.trainer.run()
    assert run.trainer.step_done == 1
    assert 1 in run.trainer.evaluations


def test_a_stop_after_the_first_evaluation_keeps_it(tmp_path):
    run = toy_run(tmp_path, Options(steps=4, max_time=100.0))
    run.journal.on = lambda event: setattr(run.clock, "now", 1000.0)
    with pytest.raises(StoppedEarly, match="stopped after step 0"):
        run.trainer.run()
    again = toy_run(tmp_path, Options(steps=4))
    again.trainer.resume(run.parts.checkpoints.newest().state)
    again.trainer.run()
    assert [step for step, _ in again.tracker.evaluations] == [4]


def test_saves_come_every_so_often_and_at_the_end_and_a_second_save_does_nothing(tmp_path):
    run = toy_run(tmp_path, Options(steps=5, evaluation=QUIET, checkpoint=CheckpointSection(every=2, keep=9)))
    listener = Listener()
    run.parts.callbacks = [listener]
    run.trainer.run()
    saves = [word for word in listener.told if word.startswith("save")]
    assert saves == ["save 2 step_000002", "save 4 step_000004", "save 5 step_000005"]
    assert run.parts.checkpoints.steps() == [2, 4, 5]
    run.trainer.save()
    assert [word for word in listener.told if word.startswith("save")] == saves


def test_a_step_that_is_due_twice_is_saved_once_and_a_resumed_run_keeps_the_count_of_passes(tmp_path):
    checkpoint = CheckpointSection(every=2, every_episodes=1, keep=9)
    options = Options(steps=7, prompts=4, num_rows=8, evaluation=QUIET, checkpoint=checkpoint)
    assert saved_by(toy_run(tmp_path / "twice", options)) == [2, 4, 6, 7]
    options = replace(options, num_rows=6, checkpoint=CheckpointSection(every_episodes=1, keep=9))
    assert saved_by(toy_run(tmp_path / "whole", options)) == [2, 3, 5, 6, 7]
    assert saved_by(toy_run(tmp_path / "parts", replace(options, steps=4))) == [2, 3, 4]
    again = toy_run(tmp_path / "parts", options)
    again.trainer.resume(again.parts.checkpoints.newest().state)
    assert saved_by(again) == [5, 6, 7]


def saved_by(run):
    """Steps that a run saves."""
    listener = Listener()
    run.parts.callbacks = [listener]
    run.trainer.run()
    return [int(word.split()[1]) for word in listener.told if word.startswith("save")]


def test_a_last_step_on_the_beat_is_saved_once(tmp_path):
    run = toy_run(tmp_path, Options(steps=2, evaluation=QUIET, checkpoint=CheckpointSection(every=1)))
    listener = Listener()
    run.parts.callbacks = [listener]
    run.trainer.run()
    assert [word for word in listener.told if word.startswith("save")] == ["save 1 step_000001", "save 2 step_000002"]


def test_a_resumed_run_equals_an_undisturbed_one(tmp_path):
    term = {"estimate": lambda one, other: None, "config": KLSection(coef=0.1, target=0.1)}
    options = Options(steps=5, evaluation=EvaluationSection(every=2), checkpoint=CheckpointSection(every=3))
    options = replace(options, strategy=MeasuresKL)
    whole = toy_run(tmp_path / "whole", replace(options, kl=KLTerm(**term)))
    whole.parts.callbacks = [Listener()]
    whole.trainer.run()

    first = toy_run(tmp_path / "parts", replace(options, steps=3, kl=KLTerm(**term)))
    first.parts.callbacks = [Listener()]
    first.trainer.run()
    second = toy_run(tmp_path / "parts", replace(options, kl=KLTerm(**term)))
    second.parts.callbacks = [Listener()]
    checkpoint = second.parts.checkpoints.newest()
    second.parts.strategy.load(checkpoint.path)
    second.trainer.resume(checkpoint.state)
    assert (second.trainer.step_done, second.parts.engine.version) == (3, 3)
    assert second.parts.kl.coef == first.parts.kl.coef
    assert second.trainer.evaluations == first.trainer.evaluations
    assert set(second.parts.callbacks[0].told) == {"loaded"}
    second.trainer.run()
    assert second.logits == whole.logits
    assert list(map(without_time, second.tracker.reports)) == list(map(without_time, whole.tracker.reports[3:]))
    assert second.trainer.evaluations[5] == whole.trainer.evaluations[5]
    assert second.parts.kl.coef == whole.parts.kl.coef


def test_the_state_is_a_copy(tmp_path):
    run = toy_run(tmp_path)
    state = run.trainer.state()
    run.trainer.run()
    assert state["step"] == 0
    assert state["evaluations"] == {}
    assert state["parts"]["task"] == {"drawn": 0}


class LosesARow(NotingEngine):
    """A broken engine: one row of what it is given never arrives."""

    def update_weights(self, weights, version):
        super().update_weights(weights, version)
        if version > 0:
            self._served.logits["01"] = [9.0] * 11


def test_a_sync_that_does_not_arrive_ends_the_run_and_names_the_parameter(tmp_path):
    run = toy_run(tmp_path, Options(evaluation=QUIET, engine=LosesARow))
    with pytest.raises(RunFailed, match=r"engine: after the sync of step 1 .* other weights than trained: 01\. "):
        run.trainer.run()
    assert run.parts.checkpoints.newest() is None


def test_a_resumed_run_is_synced_before_anything_else(tmp_path):
    toy_run(tmp_path, Options(steps=1, evaluation=QUIET)).trainer.run()
    run = toy_run(tmp_path, Options(evaluation=QUIET, engine=LosesARow))
    with pytest.raises(RunFailed, match="other weights than trained: 01"):
        run.trainer.resume(run.parts.checkpoints.newest().state)


def test_too_many_unscored_samples_in_a_row_stop_the_run(tmp_path):
    run = toy_run(tmp_path, Options(steps=9, evaluation=QUIET, run=RunSection(seed=3, max_unscored_fraction=0.0)))
    for digit in range(10):  # the stop token at once: an empty answer, which the toy reward cannot score
        run.parts.strategy.policy.row((digit,), 0)[10] = 4.0
    run.trainer.sync()
    with pytest.raises(RunFailed, match=r"rewards: \d+% of the samples could not be scored, in 3 steps in a row"):
        run.trainer.run()
    assert [report.step for report in run.tracker.reports] == [1, 2]


def test_unscored_samples_count_before_a_filter_drops_them(tmp_path):
    section = RunSection(seed=3, max_unscored_fraction=0.0, unscored_patience=1)
    filters = [("whole", lambda group: len(group.rewards()) == 4)]
    run = toy_run(tmp_path, Options(steps=9, evaluation=QUIET, run=section, filters=filters))
    run.parts.strategy.policy.row((0,), 0)[10] = 2.0
    run.trainer.sync()
    with pytest.raises(RunFailed, match="samples could not be scored"):
        run.trainer.run()


class NeverFinite(NotingStrategy):
    def step(self, minibatch, objective):
        self.journal.note("train")
        return StepStats({}, grad_norm=math.nan, lr=0.1, skipped="the gradient norm is nan")


def test_too_many_skipped_updates_in_a_row_stop_the_run(tmp_path):
    optim = OptimSection(max_skipped_steps=3)
    run = toy_run(tmp_path, Options(steps=9, minibatches=2, evaluation=QUIET, optim=optim, strategy=NeverFinite))
    with pytest.raises(RunFailed, match=r"optim: 3 optimizer steps in a row were skipped: the gradient norm is nan"):
        run.trainer.run()
    assert run.journal.events.count("train") == 3
    assert run.tracker.reports[0].metrics["train/skipped_steps"] == 2.0


def test_a_step_without_groups_fails_after_the_state_before_it_was_saved(tmp_path):
    trainer = toy_run(tmp_path, Options(steps=3, evaluation=QUIET)).trainer
    trainer.step()
    position = trainer.state()["parts"]["task"]
    trainer.parts.filters = Filters([("none", lambda group: False)], 1, SoloWorld())
    with pytest.raises(NothingToTrain, match="dropped every group"):
        trainer.run()
    saved = trainer.parts.checkpoints.newest()
    assert (saved.step, saved.state["parts"]["task"]) == (1, position)
