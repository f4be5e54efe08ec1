"""A run from its folder to its exit, with the quickstart model: what it leaves behind, however it ends."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import pytest
from lightrft_core.data import Group, Prompt, Rollout
from lightrft_core.errors import RunFailed, StoppedEarly, UserError
from lightrft_core.metrics_file import metrics_line
from lightrft_core.resumption import note_changes
from lightrft_core.rundir import RunDir
from lightrft_core.session import Session, checkpoint_of, find_run
from lightrft_core.store import RolloutStore
from lightrft_core.trainer import Trainer

from tests.core.real_run import small_run_file

CALLBACK = """
import os
import signal
from pathlib import Path

from lightrft_core import hookimpl
from lightrft_core.descriptors import Component
from lightrft_core.errors import RunFailed
from lightrft_core.sections import Section

LIGHTRFT_API = 1


class Config(Section):
    path: str
    on_step: str = "nothing"


class Listener:
    def __init__(self, config, setup):
        self.config = config

    def on_step(self, report):
        if self.config.on_step == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        if self.config.on_step == "fail":
            raise RunFailed("the listener has heard enough", where="callbacks", hint="Leave it out.")
        if self.config.on_step == "crash":
            raise ZeroDivisionError("by zero")

    def on_evaluation(self, step, metrics):
        pass

    def on_save(self, step, path):
        pass

    def on_end(self, status):
        with Path(self.config.path).open("a") as file:
            file.write(status + "\\n")


@hookimpl
def lightrft_callbacks():
    yield Component(name="listener", target=__file__ + ":Listener", config=__file__ + ":Config", summary=".")
"""


class Sessions:
    """Builds sessions of one run, whose end a listener hears."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder, []
        (folder / "listener.py").write_text(CALLBACK)

    def __call__(self, *sets: str, on_step: str = "nothing") -> Session:
        listener = f"callbacks=[{{use: listener, path: {self.folder / 'heard'}, on_step: {on_step}}}]"
        plugin = f"plugins=[{self.folder / 'listener.py'}]"
        run_file, plugins = small_run_file(plugin, listener, "trackers=[jsonl]", *sets)
        path = self.folder / "runs" / "one"
        run_dir = RunDir(path) if path.exists() else RunDir.create(path.parent, "one")
        run_dir.write_run_file(run_file.to_yaml())
        return Session(run_file, plugins, run_dir, self.said.append)

    def heard(self) -> list[str]:
        return (self.folder / "heard").read_text().split()


@pytest.fixture
def session(tmp_path):
    return Sessions(tmp_path)


@dataclass
class Ended:
    """A run that went to its end."""

    sessions: Sessions
    session: Session
    trainer: Trainer


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    sessions = Sessions(tmp_path_factory.mktemp("ended"))
    run = sessions("kl={use: k3, coef: 0.01}", "checkpoint.every=1")
    root, ours = logging.getLogger(), logging.getLogger("lightrft_core")
    before = (list(root.handlers), ours.level)
    trainer = run.train(resume=False)
    assert (root.handlers, ours.level) == before
    return Ended(sessions, run, trainer)


def steps(run_dir):
    return [json.loads(line)["step"] for line in run_dir.metrics.read_text().splitlines()]


def stored(run_dir):
    store = RolloutStore(run_dir.rollouts, readonly=True)
    found = [(row.step, row.phase, row.prompt_id, row.text, row.reward) for row in store.search(limit=-1)]
    store.close()
    return sorted(found)


def test_a_run_that_ends_leaves_everything_in_its_folder(ended):
    run = ended.session
    assert ended.trainer.step_done == 2
    status = run.run_dir.read_status()
    assert (status.state, status.reason, status.exit_code) == ("done", "", 0)
    assert ended.sessions.heard()[0] == "done"
    assert steps(run.run_dir) == [0, 1, 2, 2]
    assert checkpoint_of(run.run_dir, None).step == 2
    assert {step for step, *_ in stored(run.run_dir)} == {0, 1, 2}
    assert [line for line in ended.sessions.said if line.startswith("self-test passed: ")]


def test_the_log_tells_what_happened(ended):
    text = ended.session.run_dir.log.read_text()
    assert "INFO lightrft_core.trainer: evaluation at step 0: {" in text
    assert "INFO lightrft_core.saving: saved " in text
    assert "step_000002" in text


def test_the_manifest_holds_data_hashes_formula_and_versions(ended):
    trainer, manifest = ended.trainer, ended.session.run_dir.read_manifest()
    assert manifest["data"] == {
        "task": trainer.parts.task.fingerprint(),
        "evaluation": trainer.parts.evaluator.task.fingerprint(),
    }
    assert len(set(manifest["data"].values())) == 2
    assert manifest["formula"]["normalised_by"] == "advantage group_norm"
    assert manifest["formula"]["kl"]["options"]["coef"] == 0.01
    assert manifest["formula"]["loss"]["formula"]
    assert (manifest["seed"], manifest["world_size"]) == (5, 1)
    assert {"python", "lightrft-core", "torch"} <= set(manifest["versions"])


def test_a_signal_stops_the_run_with_a_checkpoint(session, capfd):
    run = session(on_step="terminate")
    with pytest.raises(StoppedEarly, match=r"stopped after step 1 \(SIGTERM\)"):
        run.train(resume=False)
    status = run.run_dir.read_status()
    assert (status.state, status.reason, status.exit_code) == ("stopped", "stopped after step 1 (SIGTERM)", 75)
    assert session.heard() == ["stopped"]
    assert checkpoint_of(run.run_dir, None).step == 1
    assert "SIGTERM: finishing this phase, then saving" in capfd.readouterr().err


def test_a_signal_waits_for_a_checkpoint_that_is_written_beside_training(session):
    run = session("checkpoint.every=1", "checkpoint.background=true", "run.steps=3", on_step="terminate")
    with pytest.raises(StoppedEarly, match=r"stopped after step 1 \(SIGTERM\)"):
        run.train(resume=False)
    assert checkpoint_of(run.run_dir, None).step == 1
    session("run.steps=3").train(resume=True)
    assert checkpoint_of(run.run_dir, None).step == 3


def test_the_manifest_tells_where_a_run_went_on(session):
    run = session("run.steps=3", on_step="terminate")
    with pytest.raises(StoppedEarly):
        run.train(resume=False)
    assert "resumed" not in run.run_dir.read_manifest()
    note_changes(run.run_dir, {"checkpoint.keep": [3, 5]})
    session("run.steps=3").train(resume=True)
    (entry,) = run.run_dir.read_manifest()["resumed"]
    assert (entry["step"], entry["changed"]) == (1, {"checkpoint.keep": [3, 5]})
    assert "changed since then: checkpoint.keep 3 -> 5" in session.said
    assert "resumed at step 1 with changes: checkpoint.keep 3 -> 5" in run.run_dir.log.read_text()


def test_a_part_whose_state_no_checkpoint_holds_is_refused_on_resume(session):
    run = session("run.steps=3", on_step="terminate")
    with pytest.raises(StoppedEarly):
        run.train(resume=False)
    shaped = session("run.steps=3", "advantage={use: reinforce}", "shapers=[running_norm]")
    with pytest.raises(UserError, match=r"the checkpoint holds nothing of shaper0, which keeps a state\. Resume with"):
        shaped.train(resume=True)


def test_the_time_limit_stops_the_run(session):
    run = session("run.max_time=0.001s")
    with pytest.raises(StoppedEarly, match=r"stopped after step 0 \(time limit\)"):
        run.train(resume=False)
    assert run.run_dir.read_status().exit_code == 75


def test_a_failure_is_told_in_the_status_and_to_callbacks(session):
    run = session(on_step="fail")
    with pytest.raises(RunFailed):
        run.train(resume=False)
    status = run.run_dir.read_status()
    assert (status.state, status.exit_code) == ("failed", 1)
    assert status.reason == "callbacks: the listener has heard enough. Leave it out."
    assert session.heard() == ["failed"]


def test_a_bug_is_told_in_the_status_too(session):
    run = session(on_step="crash")
    with pytest.raises(ZeroDivisionError):
        run.train(resume=False)
    status = run.run_dir.read_status()
    assert (status.state, status.reason, status.exit_code) == ("failed", "ZeroDivisionError: by zero", 1)


def test_data_that_no_reward_can_score_ends_the_run_before_it_begins(session):
    run = session("rewards=[{use: gsm8k, labels: [nobody]}]")
    with pytest.raises(UserError, match="no reward takes it"):
        run.train(resume=False)
    assert run.run_dir.read_status().exit_code == 2
    assert session.heard() == ["failed"]


def test_a_resumed_run_forgets_what_came_after_its_checkpoint_and_equals_a_whole_one(session, tmp_path):
    whole = session("run.steps=3", "checkpoint.every=1")
    whole.train(resume=False)
    expected = stored(whole.run_dir), steps(whole.run_dir)
    Path(whole.run_dir.path).rename(tmp_path / "runs" / "whole")

    cut = session("run.steps=3", "checkpoint.every=1", on_step="fail")
    with pytest.raises(RunFailed):
        cut.train(resume=False)
    assert checkpoint_free(cut.run_dir)
    again = session("run.steps=3", "checkpoint.every=1")
    again.train(resume=True)
    assert "no checkpoint was saved yet: starting from step 0" in session.said
    assert (stored(again.run_dir), steps(again.run_dir)) == expected


def checkpoint_free(run_dir):
    with pytest.raises(UserError, match=r"no intact checkpoint.*Checkpoints there: none\."):
        checkpoint_of(run_dir, None)
    return True


def test_metrics_and_rollouts_of_a_killed_step_are_cut_off(session):
    run = session("run.steps=3", on_step="terminate")
    with pytest.raises(StoppedEarly):
        run.train(resume=False)
    with run.run_dir.metrics.open("a") as file:  # as a process leaves it that was killed in step 2
        file.write(metrics_line(2, {"reward/mean": 0.125}) + '{"step": 3, "rew')
    store = RolloutStore(run.run_dir.rollouts)
    rollout = Rollout("lost", 0, (1,), "lost", (-1.0,), "stop", 1, reward=1.0)
    store.add(2, [Group(Prompt("lost", ()), (1,), [rollout])])
    store.close()

    again = session("run.steps=3")
    again.train(resume=True)
    assert any(line.startswith("resumed from ") and line.endswith("(step 1 of 3)") for line in session.said)
    assert steps(run.run_dir) == [0, 1, 2, 3, 3]
    assert "0.125" not in run.run_dir.metrics.read_text()
    assert "lost" not in {prompt_id for _, _, prompt_id, _, _ in stored(run.run_dir)}


def test_a_run_that_is_done_resumes_to_nothing(ended):
    again = ended.sessions("kl={use: k3, coef: 0.01}", "checkpoint.every=1")
    before = again.run_dir.metrics.read_text()
    again.train(resume=True)
    assert again.run_dir.metrics.read_text() == before
    assert again.run_dir.read_status().state == "done"


def test_other_data_are_refused_on_resume(session):
    run = session("run.steps=3", on_step="terminate")
    with pytest.raises(StoppedEarly):
        run.train(resume=False)
    with pytest.raises(UserError, match="the data is not what this checkpoint was trained on"):
        session("run.steps=3", "task.seed=9").train(resume=True)


def test_without_a_store_or_self_test_the_run_is_the_same(session):
    run = session("rollouts.save=false", "selftest.enabled=false")
    run.train(resume=False)
    assert not run.run_dir.rollouts.exists()
    assert not [line for line in session.said if line.startswith("self-test")]


def test_checkpoints_are_found_by_step_and_missing_ones_named(ended):
    run = ended.session
    assert checkpoint_of(run.run_dir, 1).step == 1
    with pytest.raises(UserError, match=r"no intact checkpoint of step 9\. Checkpoints there: 1, 2\."):
        checkpoint_of(run.run_dir, 9)


def test_a_run_is_found_by_path_or_name_and_nothing_else_is_one(session, tmp_path, monkeypatch):
    run = session()
    monkeypatch.chdir(tmp_path)
    assert find_run("one").path == find_run(str(run.run_dir.path)).path
    assert find_run("quickstart") is None
    assert find_run("listener.py") is None
