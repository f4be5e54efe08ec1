"""The loop over steps, with toys: order of the parts, refills, minibatches, stops, saves, resumes and streaks."""

from dataclasses import replace

import pytest
from lightrft_core.kl_term import KLTerm
from lightrft_core.sections import EvaluationSection, KLSection, OptimSection

from tests.core.toy_run import NotingStrategy, Options, toy_run

QUIET = EvaluationSection(at_start=False, at_end=False)
STEP = ["draw 4", "generate", "score", "collate", "fill", "train", "sync"]
PHASES = {"generate", "score", "prepare", "train", "sync", "store"}


class Halve:
    """A shaper."""

    def apply(self, groups, world):
        for group in groups:
            for rollout in group.rollouts:
                rollout.shaped_reward = None if rollout.reward is None else rollout.reward / 2
        return {"shaper/halved": 1.0}


def test_a_step_is_a_straight_line(tmp_path):
    run = toy_run(tmp_path, Options(steps=2, evaluation=QUIET))
    run.trainer.run()
    assert run.journal.events == STEP * 2


def test_the_report_names_metrics_and_phases(tmp_path):
    run = toy_run(tmp_path, Options(steps=1, evaluation=QUIET, shapers=[Halve()]))
    run.trainer.run()
    [report] = run.tracker.reports
    assert report.step == 1
    assert set(report.seconds) == PHASES
    assert {
        "completion/length",
        "completion/truncated_fraction",
        "group/zero_spread_fraction",
        "reward/mean",
        "accuracy",
        "reward/unscored_fraction",
        "shaper/halved",
        "throughput/tokens_per_s",
        "train/grad_norm",
        "train/lr",
        "train/policy_loss",
        "train/skipped_steps",
    } <= set(report.metrics)
    assert report.metrics["throughput/tokens_per_s"] > 0
    assert sum(len(group.rollouts) for group in report.groups) == 16


def test_the_engine_serves_the_trained_weights_of_each_step(tmp_path):
    run = toy_run(tmp_path, Options(steps=3, evaluation=QUIET))
    before = run.logits
    run.trainer.run()
    versions = [{rollout.policy_version for group in report.groups for rollout in group.rollouts}
                for report in run.tracker.reports]  # fmt: skip
    assert versions == [{0}, {1}, {2}]
    assert run.parts.engine.version == 3
    assert run.logits != before


def test_the_engine_sleeps_while_the_trainer_works_and_wakes_with_the_trained_weights(tmp_path):
    run = toy_run(tmp_path, Options(steps=2, evaluation=QUIET))
    run.trainer.run()
    assert run.journal.naps == [("sleep", "score"), ("wake", "sync")] * 2


def test_every_rollout_is_stored_with_its_step_and_phase(tmp_path):
    run = toy_run(tmp_path, Options(steps=2))
    run.trainer.run()
    found = run.parts.store.search(limit=-1)
    assert {(row.step, row.phase) for row in found} == {(0, "eval"), (1, "train"), (2, "train"), (2, "eval")}
    assert len([row for row in found if row.phase == "train"]) == 32


def test_a_prompt_that_a_refill_draws_again_is_answered_with_other_seeds(tmp_path):
    """Two prompts in all, so every refill draws the same ones."""
    rejected = []

    def keeps(group):
        rejected.append(group.prompt.id)
        return len(rejected) > 2

    run = toy_run(tmp_path, Options(steps=1, prompts=2, num_rows=2, evaluation=QUIET, filters=[("first", keeps)]))
    run.trainer.run()
    seeds = [seed for request in run.journal.requests for seed in request.seeds]
    assert {request.prompt_id for request in run.journal.requests[2:]} == {"toy-0", "toy-1"}
    assert len(seeds) == len(set(seeds)) == 16
    assert run.journal.events == ["draw 2", "generate", "score", "draw 2", "generate", "score", *STEP[3:]]
    assert run.tracker.reports[0].metrics["filter/first_dropped"] == 2.0


def test_each_round_of_refill_has_its_own_seeds(tmp_path):
    calls = []
    run = toy_run(
        tmp_path,
        Options(steps=1, prompts=1, num_rows=1, evaluation=QUIET, filters=[("late", lambda g: calls.append(g) or len(calls) > 3)]),  # noqa: E501
    )  # fmt: skip
    run.trainer.run()
    assert len({request.seeds for request in run.journal.requests}) == 4
    assert run.tracker.reports[0].metrics["filter/refill_rounds"] == 3.0


def test_time_of_refills_counts_as_generation(tmp_path):
    """The phase `score` holds the filters, but not what a refill generates."""
    ticks = []
    run = toy_run(
        tmp_path, Options(steps=1, evaluation=QUIET, filters=[("one", lambda g: ticks.append(g) or len(ticks) > 1)])
    )
    run.trainer.run()
    assert run.journal.events.count("generate") == 2
    assert set(run.tracker.reports[0].seconds) == PHASES


def test_the_only_minibatch_needs_no_old_logprobs(tmp_path):
    run = toy_run(tmp_path, Options(steps=1, evaluation=QUIET))
    run.trainer.run()
    assert [batch.old_logprobs_BT for batch in run.journal.minibatches] == [None]


def test_later_minibatches_get_old_logprobs_before_the_first_update(tmp_path):
    run = toy_run(tmp_path, Options(steps=1, minibatches=3, evaluation=QUIET))
    run.trainer.run()
    assert run.journal.events[4:] == ["fill", "fill old_logprobs", "fill old_logprobs", "train", "train", "train", "sync"]  # noqa: E501  # fmt: skip
    first, *later = run.journal.minibatches
    assert first.old_logprobs_BT is None
    for batch in later:  # the toy policy starts uniform, and the engine sampled from it
        assert batch.old_logprobs_BT == batch.engine_logprobs_BT


def test_several_epochs_share_the_old_logprobs_of_the_whole_batch(tmp_path):
    optim = OptimSection(epochs=2)
    run = toy_run(tmp_path, Options(steps=1, minibatches=2, optim=optim, evaluation=QUIET))
    run.trainer.run()
    assert run.journal.events.count("fill old_logprobs") == 1
    assert run.journal.events.count("train") == 4
    assert all(batch.old_logprobs_BT == batch.engine_logprobs_BT for batch in run.journal.minibatches)
    for epoch in (run.journal.minibatches[:2], run.journal.minibatches[2:]):
        assert sorted(name for batch in epoch for name in batch.prompt_ids) == sorted(
            name for group in run.tracker.reports[0].groups for name in [group.prompt.id] * 4
        )


def test_old_logprobs_that_a_part_needs_are_filled_once(tmp_path):
    run = toy_run(tmp_path, Options(steps=1, minibatches=2, needs=frozenset({"old_logprobs"}), evaluation=QUIET))
    run.trainer.run()
    assert [event for event in run.journal.events if event.startswith("fill")] == ["fill old_logprobs"]
    assert all(batch.old_logprobs_BT is not None for batch in run.journal.minibatches)


class MeasuresKL(NotingStrategy):
    def step(self, minibatch, objective):
        stats = super().step(minibatch, objective)
        return replace(stats, metrics={**stats.metrics, "kl": (0.4, 2.0)})


def test_a_kl_in_the_loss_has_the_controllers_present_weight(tmp_path):
    term = KLTerm(lambda one, other: None, KLSection(coef=0.1, target=0.1, horizon=100))
    run = toy_run(tmp_path, Options(steps=2, evaluation=QUIET, kl=term, strategy=MeasuresKL))
    run.trainer.run()
    assert [objective.kl_coef for objective in run.journal.objectives] == [0.1, pytest.approx(0.1 * (1 + 0.2 * 16 / 100))]  # noqa: E501  # fmt: skip
    assert [report.metrics["train/kl"] for report in run.tracker.reports] == [0.2, 0.2]
    assert run.tracker.reports[-1].metrics["train/kl_coef"] == term.coef


def test_a_step_that_measured_no_kl_does_not_steer_it(tmp_path):
    term = KLTerm(lambda one, other: None, KLSection(coef=0.1, target=0.1))
    toy_run(tmp_path, Options(steps=1, evaluation=QUIET, kl=term)).trainer.run()
    assert term.coef == 0.1


@pytest.mark.parametrize(
    ("section", "steps"),
    [
        (EvaluationSection(), [0, 4]),
        (EvaluationSection(every=2), [0, 2, 4]),
        (EvaluationSection(every=3), [0, 3, 4]),
        (EvaluationSection(every=3, at_start=False, at_end=False), [3]),
        (QUIET, []),
    ],
)
def test_evaluation_comes_at_the_start_every_so_often_and_at_the_end_and_never_twice(tmp_path, section, steps):
    run = toy_run(tmp_path, Options(steps=4, evaluation=section))
    run.trainer.run()
    assert [step for step, _ in run.tracker.evaluations] == steps
    assert sorted(run.trainer.evaluations) == steps


def test_without_an_evaluator_nothing_is_measured(tmp_path):
    run = toy_run(tmp_path, Options(steps=1))
    run.parts.evaluator = None
    run.trainer.run()
    assert run.trainer.evaluations == {}


def test_an_evaluation_changes_nothing_that_is_trained(tmp_path):
    often = toy_run(tmp_path / "often", Options(steps=3, evaluation=EvaluationSection(every=1)))
    never = toy_run(tmp_path / "never", Options(steps=3, evaluation=QUIET))
    often.trainer.run()
    never.trainer.run()
    assert often.logits == never.logits
