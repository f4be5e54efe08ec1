"""Saving beside the loop, with toys: what waits for what, whose moment is saved, and where an error comes up."""

import errno
import itertools
import json
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from lightrft_core.errors import RunFailed, StoppedEarly
from lightrft_core.plugins import Plugins
from lightrft_core.saving import is_due
from lightrft_core.seal import list_files
from lightrft_core.sections import CheckpointSection, EvaluationSection
from lightrft_core.testing.toys import ToyWorlds

from tests.core.test_trainer_resume import QUIET, Listener, without_time
from tests.core.toy_run import NotingStrategy, Options, toy_run

BESIDE = CheckpointSection(every=2, keep=9, background=True)
EVERY_STEP = CheckpointSection(every=1, keep=9, background=True)


@pytest.mark.parametrize(
    ("section", "prompts_per_step", "expected"),
    [  # of ten prompts
        ({}, 2, []),
        ({"every": 5}, 2, [5, 10, 15]),
        ({"every_episodes": 1}, 2, [5, 10, 15]),
        ({"every_episodes": 2}, 2, [10]),
        ({"every_episodes": 1}, 3, [4, 7, 10, 14]),  # the 10th, 20th, 30th and 40th prompt
        ({"every_episodes": 1, "every": 4}, 3, [4, 7, 8, 10, 12, 14, 16]),
        ({"every_episodes": 3}, 25, [2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 14, 15, 16]),  # most steps end three passes
    ],
)
def test_a_step_saves_where_a_pass_over_the_prompts_ends(section, prompts_per_step, expected):
    given = CheckpointSection(**section)
    drawn, by_hand = 0, []
    for step in range(1, 17):
        ends = [number for number in range(drawn + 1, drawn + prompts_per_step + 1) if number % 10 == 0]
        drawn += prompts_per_step
        passes = [number // 10 for number in ends]
        by_passes = given.every_episodes and any(number % given.every_episodes == 0 for number in passes)
        if by_passes or (given.every and step % given.every == 0):
            by_hand.append(step)
    found = [step for step in range(1, 17) if is_due(given, step, prompts_per_step, 10)]
    assert found == by_hand == expected


class Held(NotingStrategy):
    """Its staged copies are written only once `released` is set."""

    def stage(self, *, export=None, state=True):
        write = super().stage(export=export, state=state)
        self.journal.note("stage")

        def write_later(folder):
            assert self.released.wait(30)
            write(folder)
            self.journal.events.append("written")

        return write_later


def held(folder, options, release_at="generate", count=1):
    """A run whose copies are held back until an event was seen so many times after the first copy was taken."""
    run = toy_run(folder, replace(options, strategy=Held, evaluation=options.evaluation))
    run.parts.strategy.released = released = threading.Event()
    seen = []

    def on(event):
        if seen or event == "stage":
            seen.append(event)
        if seen.count(release_at) >= count:
            released.set()

    run.journal.on = on
    return run


class Full(NotingStrategy):
    """The disk is full for the copies of one rank."""

    def stage(self, *, export=None, state=True):
        write = super().stage(export=export, state=state)

        def write_nothing(folder):
            if self.world.rank == self.world.size - 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(folder)

        return write_nothing


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path):
    run = held(tmp_path, Options(steps=5, evaluation=QUIET, checkpoint=BESIDE), "train")
    run.trainer.run()
    events = [event for event in run.journal.events if event in ("train", "stage", "written")]
    assert events[:4] == ["train", "train", "stage", "train"]
    assert run.parts.checkpoints.steps() == [2, 4, 5]


def test_the_next_save_waits_for_the_one_before(tmp_path):
    run = held(tmp_path, Options(steps=4, evaluation=QUIET, checkpoint=EVERY_STEP), "generate")
    run.trainer.run()
    events = [event for event in run.journal.events if event in ("stage", "written")]
    assert events == ["stage", "written"] * 3


def test_a_copy_is_of_its_step_whatever_comes_after(tmp_path):
    options = Options(steps=5, evaluation=QUIET, checkpoint=BESIDE)
    waiting = replace(options, checkpoint=CheckpointSection(every=2, keep=9))
    run, plain = held(tmp_path / "beside", options, "train"), toy_run(tmp_path / "plain", waiting)
    for one in (run, plain):
        one.trainer.run()
    for step in (2, 4, 5):
        first, second = run.parts.checkpoints.at(step), plain.parts.checkpoints.at(step)
        assert first.state == second.state
        assert (first.path / "toy.json").read_text() == (second.path / "toy.json").read_text()


def test_a_run_goes_on_from_a_checkpoint_that_was_written_beside_it(tmp_path):
    options = Options(steps=5, evaluation=EvaluationSection(every=2), checkpoint=BESIDE)
    whole = toy_run(tmp_path / "run", options)
    whole.trainer.run()
    again = toy_run(tmp_path / "run", options)
    checkpoint = again.parts.checkpoints.at(2)
    again.parts.strategy.load(checkpoint.path)
    again.trainer.resume(checkpoint.state)
    again.trainer.run()
    assert again.logits == whole.logits
    assert list(map(without_time, again.tracker.reports)) == list(map(without_time, whole.tracker.reports[2:]))


def test_callbacks_are_told_in_the_loop_of_every_published_checkpoint(tmp_path):
    run = toy_run(tmp_path, Options(steps=5, evaluation=QUIET, checkpoint=BESIDE))
    listener, threads = Listener(), set()
    listener.on_save = lambda step, path: threads.add((threading.current_thread(), step, path.is_dir()))
    run.parts.callbacks = [listener]
    run.trainer.run()
    assert threads == {(threading.main_thread(), step, True) for step in (2, 4, 5)}


def test_a_requested_stop_waits_for_the_save_in_flight(tmp_path):
    run = held(tmp_path, Options(steps=9, evaluation=QUIET, checkpoint=BESIDE, max_time=100.0), "stop")
    noted = run.journal.on

    def stop(event):
        noted(event)
        if event == "generate" and run.trainer.step_done == 2:
            run.clock.now = 1000.0
            noted("stop")

    run.journal.on = stop
    with pytest.raises(StoppedEarly, match=r"stopped after step 2 \(time limit\)"):
        run.trainer.run()
    assert run.journal.events.count("written") == 1
    assert run.parts.checkpoints.newest().step == 2


def test_the_last_evaluation_begins_after_the_last_step_is_on_the_disk(tmp_path):
    run = toy_run(tmp_path, Options(steps=2, evaluation=EvaluationSection(at_start=False), checkpoint=BESIDE))
    seen = []
    run.journal.on = lambda event: seen.append((event, run.trainer.step_done, run.parts.checkpoints.steps()))
    run.trainer.run()
    assert seen[-2] == ("generate", 2, [2])


def failure_of(folder, world=None):
    options = Options(steps=9, evaluation=QUIET, checkpoint=EVERY_STEP, strategy=Full)
    run = toy_run(folder, options if world is None else replace(options, world=world))
    with pytest.raises(RunFailed) as failure:
        run.trainer.run()
    return str(failure.value), run.parts.checkpoints.steps(), run.trainer.step_done


def test_a_full_disk_ends_the_run_at_the_next_opportunity(tmp_path):
    text, steps, done = failure_of(tmp_path)
    assert "the checkpoint could not be written: [Errno 28] No space left on device" in text
    assert "There is no earlier checkpoint. Make room" in text
    assert steps == []
    assert done <= 2


def test_an_error_of_one_rank_is_raised_on_all_of_them(tmp_path):
    results = ToyWorlds(3).run(lambda world: failure_of(tmp_path, world))
    assert {text.partition(" (")[0] for text, _, _ in results} == {
        f"{tmp_path}/checkpoints: the checkpoint could not be written: rank 2: [Errno 28] No space left on device"
    }
    assert len({done for _, _, done in results}) == 1


def test_ranks_save_beside_their_loops_as_one_does(tmp_path):
    options = Options(steps=5, evaluation=QUIET, checkpoint=BESIDE)
    alone = toy_run(tmp_path / "alone", options)
    alone.trainer.run()

    def work(world):
        run = toy_run(tmp_path / "ranks", replace(options, world=world))
        run.trainer.run()
        return run

    one, other = ToyWorlds(2).run(work)
    for step in (2, 4, 5):
        expected = alone.parts.checkpoints.at(step)
        assert one.parts.checkpoints.at(step).state == other.parts.checkpoints.at(step).state == expected.state


def test_a_run_that_fails_by_itself_lets_the_save_in_flight_end(tmp_path):
    run = held(tmp_path, Options(steps=9, evaluation=QUIET, checkpoint=BESIDE), "never")
    noted = run.journal.on

    def fail(event):
        noted(event)
        if event == "train" and run.trainer.step_done == 2:
            raise ZeroDivisionError

    run.journal.on = fail
    with pytest.raises(ZeroDivisionError):
        run.trainer.run()
    run.parts.strategy.released.set()
    run.trainer.close()
    assert run.parts.checkpoints.newest().step == 2


def test_an_error_of_a_save_does_not_hide_that_of_the_run(tmp_path, caplog):
    run = toy_run(tmp_path, Options(steps=9, evaluation=QUIET, checkpoint=BESIDE, strategy=Full))
    run.trainer.step()
    run.trainer.step()
    run.trainer._saver.begin(2, run.trainer.state)
    run.trainer.close()
    assert "a checkpoint was not written: " in caplog.text
    assert "No space left on device" in caplog.text


@pytest.mark.parametrize("background", [False, True])
def test_an_export_lies_in_every_checkpoint(tmp_path, background):
    section = BESIDE.model_copy(update={"export": True, "background": background})
    run = toy_run(tmp_path, Options(steps=3, evaluation=QUIET, checkpoint=section))
    run.trainer.run()
    for step in (2, 3):
        path = run.parts.checkpoints.at(step).path
        assert (path / "hf/toy.json").read_text() == (path / "toy.json").read_text()
        assert "hf/toy.json" in json.loads((path / "manifest.json").read_text())["files"]


def test_the_log_tells_how_long_training_waited(tmp_path, caplog):
    with caplog.at_level("INFO"):
        toy_run(tmp_path, Options(steps=3, evaluation=QUIET, checkpoint=BESIDE)).trainer.run()
    told = [record.getMessage() for record in caplog.records if record.name == "lightrft_core.saving"]
    assert len(told) == 2
    assert all("saved " in text and " s; training waited " in text for text in told)


def test_a_strategy_that_cannot_be_saved_beside_its_training_is_refused(run_problems, monkeypatch):
    found = Plugins.find

    def without(self, kind, name, *, where):
        component = found(self, kind, name, where=where)
        return replace(component, provides=frozenset()) if kind == "strategy" else component

    monkeypatch.setattr(Plugins, "find", without)
    base = "model: {path: ./model}\ntask: {path: ./train.jsonl}\nrewards: [exact]\n"
    (text,) = run_problems(f"algorithm: grpo\n{base}checkpoint: {{every: 5, background: true}}\n")
    assert "single saves while training waits. Leave checkpoint.background out." in text


WEIGHTS = CheckpointSection(every=2, keep=9, resumable=False)


@pytest.mark.parametrize("background", [False, True])
def test_weights_alone_are_those_of_their_step_and_nothing_else(tmp_path, background):
    section = WEIGHTS.model_copy(update={"background": background})
    options = Options(steps=5, evaluation=QUIET, checkpoint=section)
    run = toy_run(tmp_path / "weights", options)
    whole = toy_run(tmp_path / "whole", replace(options, checkpoint=CheckpointSection(every=2, keep=9)))
    for one in (run, whole):
        one.trainer.run()
    for step in (2, 4, 5):
        found, other = run.parts.checkpoints.at(step), whole.parts.checkpoints.at(step)
        assert [path.relative_to(found.path).as_posix() for path in list_files(found.path)] == [
            "hf/toy.json",
            "manifest.json",
        ]
        assert (found.path / "hf/toy.json").read_text() == (other.path / "toy.json").read_text()
        assert not found.is_resumable


@pytest.mark.parametrize("moment", ["generate", "train"])
def test_a_run_of_weights_alone_that_is_stopped_goes_on_as_if_it_never_was(tmp_path, moment):
    options = Options(steps=5, evaluation=QUIET, checkpoint=WEIGHTS)
    whole = toy_run(tmp_path / "whole", options)
    whole.trainer.run()
    stopped = toy_run(tmp_path / "stopped", replace(options, max_time=100.0))

    def stop(event):
        if (event, stopped.trainer.step_done) == (moment, {"generate": 2, "train": 1}[moment]):
            stopped.clock.now = 1000.0

    stopped.journal.on = stop
    with pytest.raises(StoppedEarly, match="stopped after step 2"):
        stopped.trainer.run()
    found = stopped.parts.checkpoints.newest()  # it replaced what was saved of this step by the section
    assert (found.step, found.is_resumable, (found.path / "hf").exists()) == (2, True, False)
    again = toy_run(tmp_path / "stopped", options)
    again.parts.strategy.load(found.path)
    again.trainer.resume(found.state)
    again.trainer.run()
    assert again.logits == whole.logits
    assert again.parts.checkpoints.steps(resumable=True) == [2]


def test_weights_alone_of_the_last_step_are_written_once_though_an_evaluation_follows(tmp_path):
    run = toy_run(tmp_path, Options(steps=2, checkpoint=CheckpointSection(resumable=False)))
    run.parts.callbacks = [listener := Listener()]
    run.trainer.run()
    assert listener.told == ["evaluation 0", "step 1", "step 2", "save 2 step_000002", "evaluation 2"]


@pytest.mark.parametrize(("resumable", "seconds"), [(True, 1.0), (False, 6.0)])
def test_a_time_limit_leaves_room_to_save_more_than_weights(tmp_path, monkeypatch, resumable, seconds):
    monkeypatch.setattr("lightrft_core.saving.time", SimpleNamespace(monotonic=itertools.count().__next__))
    section = CheckpointSection(resumable=resumable)
    run = toy_run(tmp_path, Options(steps=1, evaluation=QUIET, checkpoint=section, max_time=1e6))
    run.trainer.run()
    before = run.parts.stopper.seconds_left
    run.parts.stopper.note_save(seconds)
    assert run.parts.stopper.seconds_left == before
    run.parts.stopper.note_save(seconds + 0.1)
    assert run.parts.stopper.seconds_left < before


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("strategy.ema=true", "would lose the average of the weights that strategy.ema keeps."),
        ("model.lora.rank=8", "would not save room: of model.lora a resumable checkpoint holds the adapters alone."),
    ],
)
def test_weights_alone_are_refused_where_they_lose_an_average_or_save_no_room(run_problems, key, told):
    (text,) = run_problems(sets=[key], flags=["--disable_ds_ckpt"])
    assert text == f"--disable_ds_ckpt (checkpoint.resumable): {told} Leave one of the two out."
