import json
import os
import signal
from pathlib import Path

import pytest
from lightrft_core.comparison import Question, Trial, plan
from lightrft_core.comparison_report import report_of
from lightrft_core.errors import Problems, UserError
from lightrft_core.metrics_file import metrics_line
from lightrft_core.rundir import RunDir
from lightrft_core.trials import Outcome, command_of, outcome_of, run_trials

WITH_LOSS = """
algorithm: grpo
model: {path: ./model}
task: {path: ./train.jsonl}
rewards: [exact]
sampler: {group_size: 4}
loss: {clip_high: 0.28, aggregation: token_mean}
kl: null
run: {seed: 5}
"""


@pytest.fixture
def ask(run_folder, plugins):
    """Plans a comparison of the working folder's run.yaml."""

    def ask(*algorithms, text=None, seeds=2, **more):
        if text is not None:
            Path("run.yaml").write_text(text)
        question = Question(source="run.yaml", algorithms=algorithms, seeds=seeds, folder=run_folder / "c", **more)
        return plan(question, plugins)

    return ask


def resolved(trial, plugins):
    from lightrft_core.overrides import parse_set
    from lightrft_core.runfile import load_run_file

    return load_run_file(trial.source, [parse_set(text) for text in trial.sets], plugins)


def done(trial, scores, *, metric="eval/score", state="done", plugins=None):
    """The folder that a trial leaves when it went to its end: a score every five steps."""
    run = RunDir.create(trial.run_dir.path.parent, trial.run_dir.name)
    run.write_run_file(resolved(trial, plugins).to_yaml() if plugins else "{}")
    lines = [metrics_line(5 * i, {metric: score, "seconds/train": 1.0}) for i, score in enumerate(scores)]
    run.metrics.write_text("".join(lines))
    run.write_status(state, "the disk is full" if state == "failed" else "", 0)


def trial(tmp_path, name="grpo", seed=1):
    return Trial(name, seed, RunDir(tmp_path / f"{name}-seed{seed}"), tmp_path / "absent.yaml", ("run.seed=1",))


def outcome(name, *scores, state="done", tmp_path=Path()):
    points = tuple((5 * i, score) for i, score in enumerate(scores))
    return Outcome(trial(tmp_path, name), state, "", "eval/score", points, 10.0)


def test_seeds_count_up_from_the_run_files_own_and_every_algorithm_comes_early(ask):
    planned = ask("grpo", "dapo", text=WITH_LOSS)
    assert [(t.algorithm, t.seed) for t in planned.trials] == [("grpo", 5), ("dapo", 5), ("grpo", 6), ("dapo", 6)]
    assert [t.run_dir.name for t in planned.trials][:2] == ["grpo-seed5", "dapo-seed5"]


def test_seeds_may_be_listed(ask):
    assert [t.seed for t in ask("grpo", seeds=[9, 2]).trials] == [9, 2]


def test_what_an_algorithm_sets_wins_over_the_run_file_and_is_told(ask, plugins):
    planned = ask("grpo", "dr_grpo", text=WITH_LOSS, seeds=1)
    grpo, dr_grpo = (resolved(t, plugins) for t in planned.trials)
    assert grpo.loss.config.clip_high == 0.2
    assert grpo.loss.config.aggregation == "seq_mean_token_mean"
    assert grpo.kl.config.coef == 0.001
    assert dr_grpo.loss.config.aggregation == "seq_mean_token_sum_norm"
    assert dr_grpo.kl is None
    assert grpo.sampler.config.group_size == dr_grpo.sampler.config.group_size == 4
    assert planned.given_way == ("loss.clip_high", "loss.aggregation", "kl")


def test_an_algorithm_with_another_loss_drops_the_options_of_the_files(ask, plugins):
    (only,) = ask("gspo", text=WITH_LOSS.replace("clip_high", "dual_clip: 3, clip_high"), seeds=1).trials
    assert resolved(only, plugins).loss.name == "gspo"
    assert resolved(only, plugins).loss.config.clip_high == 4e-4


def test_the_run_file_can_be_let_hold(ask, plugins):
    planned = ask("grpo", "dr_grpo", text=WITH_LOSS, seeds=1, keeps_file=True)
    assert {resolved(t, plugins).loss.config.aggregation for t in planned.trials} == {"token_mean"}
    assert planned.given_way == ()


def test_set_wins_over_both_for_all_or_for_one_algorithm(ask, plugins):
    own = {"dapo": ["optim.lr=0.5"]}
    planned = ask("grpo", "dapo", text=WITH_LOSS, seeds=1, sets=["loss.clip_low=0.1"], own_sets=own)
    grpo, dapo = (resolved(t, plugins) for t in planned.trials)
    assert grpo.loss.config.clip_low == dapo.loss.config.clip_low == 0.1
    assert dapo.optim.lr == 0.5
    assert grpo.optim.lr != 0.5


def test_everything_wrong_with_any_algorithm_is_told_before_anything_runs(ask):
    with pytest.raises(Problems) as caught:
        ask("grpo", "grop", sets=["optim.lrr=1"])
    assert "--algorithms: no algorithm 'grop'. Did you mean 'grpo'?" in str(caught.value)
    assert "Did you mean 'lr'?" in str(caught.value)


def test_an_algorithm_is_named_once(ask):
    with pytest.raises(UserError, match="--algorithms: names grpo twice"):
        ask("grpo", "dapo", "grpo")


def test_a_folder_with_runs_of_other_settings_is_refused(ask, plugins):
    done(ask("grpo", seeds=1).trials[0], [0.1, 0.9], plugins=plugins)
    ask("grpo", "dapo", seeds=2)
    with pytest.raises(UserError, match=r"grpo-seed42: was made with sampler.group_size 8, now asked for is 2\."):
        ask("grpo", seeds=1, sets=["sampler.group_size=2"])


def test_a_new_trial_is_an_ordinary_train_command_and_a_begun_one_a_resume(tmp_path):
    new = trial(tmp_path)
    assert command_of(new)[3:] == ["train", str(tmp_path / "absent.yaml"), "--set", "run.seed=1"]
    done(new, [0.1], state="stopped")
    assert command_of(new)[3:] == ["train", "--resume", str(tmp_path / "grpo-seed1")]


def test_a_finished_trial_is_not_run_again(tmp_path):
    one = trial(tmp_path)
    done(one, [0.1, 0.7, 0.5])
    told = []
    (found,) = run_trials([one], told.append)
    assert told == [found]
    assert not one.output.exists()
    assert found.points == ((0, 0.1), (5, 0.7), (10, 0.5))
    assert found.best == (5, 0.7)
    assert found.seconds == 3.0


def test_a_trial_that_fails_is_an_outcome_and_the_next_one_runs(tmp_path):
    bad, good = trial(tmp_path, "bad"), trial(tmp_path, "good")
    done(good, [0.1, 0.7])
    first, second = run_trials([bad, good], lambda outcome: None)
    assert first.state == "failed"
    assert "absent.yaml: no such run file or recipe" in first.reason
    assert "no such run file" in bad.output.read_text()
    assert second.is_done


def test_a_signal_ends_the_comparison_after_the_running_trial(tmp_path):
    trials = [trial(tmp_path, "a"), trial(tmp_path, "b")]
    for one in trials:
        done(one, [0.1])
    outcomes = run_trials(trials, lambda outcome: os.kill(os.getpid(), signal.SIGTERM))
    assert [outcome.trial.algorithm for outcome in outcomes] == ["a"]


def test_without_an_evaluation_the_training_reward_is_compared(tmp_path):
    one = trial(tmp_path)
    done(one, [0.1, 0.3], metric="reward/mean")
    assert outcome_of(one).metric == "reward/mean"
    assert outcome_of(one, "accuracy").state == "failed"
    assert outcome_of(one, "accuracy").reason == "the run has no metric 'accuracy'"


def test_the_report_has_means_over_seeds_with_students_interval():
    outcomes = [outcome("a", 0.2, 0.5, 0.8), outcome("a", 0.4, 0.7, 0.6), outcome("b", 0.3, 0.3)]
    report = report_of(outcomes, level=0.65)
    a, b = report.rows
    assert a.first.mean == pytest.approx(0.3)
    assert a.first.margin == pytest.approx(12.706 * 0.1)  # t of one degree of freedom times the standard error
    assert a.best.mean == pytest.approx(0.75)
    assert a.rise.mean == pytest.approx(0.4)
    assert (a.num_reached, a.steps_to_level.mean) == (2, 7.5)
    assert (b.num_done, b.first.margin, b.num_reached, b.steps_to_level) == (1, None, 0, None)


def test_the_level_is_half_of_the_best_rise_where_none_is_given():
    report = report_of([outcome("a", 0.2, 0.8), outcome("b", 0.2, 0.4)])
    assert report.level == 0.5
    assert [row.num_reached for row in report.rows] == [1, 0]


def test_failed_runs_are_counted_and_drawn_nowhere():
    report = report_of([outcome("a", 0.2, 0.8), outcome("a", state="failed")])
    assert report.num_failed == 1
    assert (report.rows[0].num_done, report.rows[0].num_runs) == (1, 2)
    assert report.curves() == {"a": [((0, 0.2), (5, 0.8))]}
    assert json.loads(json.dumps(report.as_data()))["runs"][1]["state"] == "failed"
