"""The loop over steps, with toys on two ranks: they train as one, refill together and stop together."""

from dataclasses import replace

import pytest
from lightrft_core.errors import StoppedEarly
from lightrft_core.protocols import SoloWorld
from lightrft_core.sections import CheckpointSection, EvaluationSection, OptimSection
from lightrft_core.testing.toys import ToyWorlds

from tests.core.toy_run import Options, toy_run

QUIET = EvaluationSection(at_start=False, at_end=False)


def without_time(report):
    return {name: value for name, value in report.metrics.items() if name != "throughput/tokens_per_s"}


def spread(world, folder, options):
    run = toy_run(folder, replace(options, world=world))
    run.trainer.run()
    return run


@pytest.mark.parametrize(("minibatches", "epochs"), [(1, 1), (2, 1), (2, 3)])
def test_two_ranks_train_as_one(tmp_path, minibatches, epochs):
    options = Options(steps=3, evaluation=EvaluationSection(every=2), checkpoint=CheckpointSection(every=1))
    options = replace(options, minibatches=minibatches, optim=OptimSection(epochs=epochs))
    alone = spread(SoloWorld(), tmp_path / "alone", options)
    ranks = ToyWorlds(2).run(lambda world: spread(world, tmp_path / "ranks", options))
    assert ranks[0].logits == ranks[1].logits
    for name, row in alone.logits.items():
        assert ranks[0].logits[name] == pytest.approx(row, abs=1e-12)
    for one, other, solo in zip(ranks[0].tracker.reports, ranks[1].tracker.reports, alone.tracker.reports, strict=True):
        assert without_time(one) == without_time(other) == pytest.approx(without_time(solo))
    assert ranks[0].trainer.evaluations == ranks[1].trainer.evaluations == alone.trainer.evaluations
    assert ranks[0].trainer.state() == ranks[1].trainer.state() == alone.trainer.state()


def test_ranks_draw_refills_together_and_share_them(tmp_path):
    """Rank 0 keeps all it gets, rank 1 drops what it gets first: both draw the same, and no answer comes twice."""

    def work(world):
        seen = []
        keeps = ("late", lambda group: world.rank == 0 or (seen.append(group) or len(seen) > 2))
        return spread(world, tmp_path, Options(steps=1, prompts=4, evaluation=QUIET, filters=[keeps]))

    one, other = ToyWorlds(2).run(work)
    assert one.trainer.state() == other.trainer.state()
    assert one.trainer.state()["parts"]["task"] == {"drawn": 6}
    assert [len(run.tracker.reports[0].groups) for run in (one, other)] == [2, 2]
    seeds = [seed for run in (one, other) for request in run.journal.requests for seed in request.seeds]
    assert len(seeds) == len(set(seeds))


def test_a_rank_that_the_filters_leave_nothing_trains_along(tmp_path):
    def work(world):
        keeps = ("rank0", lambda group: world.rank == 0)
        return spread(world, tmp_path, Options(steps=2, evaluation=QUIET, max_rounds=1, filters=[keeps]))

    one, other = ToyWorlds(2).run(work)
    assert other.tracker.reports[0].groups == []
    assert one.logits == other.logits
    assert without_time(one.tracker.reports[0]) == without_time(other.tracker.reports[0])
    assert one.tracker.reports[0].metrics["filter/filled_fraction"] == 0.5


def test_a_stop_that_one_rank_was_asked_for_stops_all(tmp_path):
    def work(world):
        run = toy_run(tmp_path, Options(steps=3, world=world, evaluation=QUIET, max_time=100.0))
        if world.rank == 1:
            run.clock.now = 1000.0
        with pytest.raises(StoppedEarly, match=r"stopped after step 0 \(time limit\)"):
            run.trainer.run()
        return run.parts.checkpoints.newest().step

    assert ToyWorlds(2).run(work) == [0, 0]
