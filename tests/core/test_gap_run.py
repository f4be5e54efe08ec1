"""Runs whose engine is off: every token is counted, a warning names the figure, a stop leaves the last good step."""

import logging

import pytest
import torch
from lightrft_core.errors import GapTooLarge, Problems
from lightrft_core.protocols import Corrected

from tests.core.real_run import real_run, small_run_file

PLUGIN = '''
"""An engine that reports log-probabilities that are too low from some step on."""

from dataclasses import replace

from lightrft_core import hookimpl
from lightrft_core.descriptors import Component
from lightrft_core.sections import Section
from lightrft_engines.embedded import EmbeddedEngine
from lightrft_engines.embedded_config import EmbeddedConfig

LIGHTRFT_API = 1


class OffConfig(EmbeddedConfig):
    """Options of `off`."""

    by: float = 0.3
    """Nats per token."""
    after: int = 1
    """Version from which on they are off."""


class OffEngine(EmbeddedEngine):
    """Wrong on purpose."""

    def __init__(self, config, setup):
        super().__init__(config, setup)
        self._off = config

    def generate(self, requests):
        by = self._off.by if self.version >= self._off.after else 0.0
        return [
            [replace(item, logprobs=tuple(value - by for value in item.logprobs)) for item in group]
            for group in super().generate(requests)
        ]


@hookimpl
def lightrft_engines():
    yield Component(name="off", target="off_engine:OffEngine", config="off_engine:OffConfig", summary="Wrong.",
                    provides=frozenset({"logprobs"}))
'''
ALL_ROWS = "loss.entropy_coef=1.0e-9"  # so that rows without advantage are computed too


@pytest.fixture
def build(tmp_path):
    """Trainers of runs with the engine that is off."""
    plugin = tmp_path / "off_engine.py"
    plugin.write_text(PLUGIN)
    runs = []

    def make(*sets, engine="{use: off, by: 0.3, after: 1}"):
        words = (f"plugins=[{plugin}]", f"engine={engine}", "selftest.enabled=false", "run.steps=3", ALL_ROWS)
        folder = tmp_path / f"run{len(runs)}"
        folder.mkdir()
        run = real_run(folder, *words, "evaluation.at_start=false", "evaluation.at_end=false", *sets)
        runs.append(run)
        trainer = run.trainer()
        trainer.parts.trackers, trainer.reports = [], []
        trainer.parts.callbacks = [Reports(trainer.reports)]
        return trainer

    yield make
    for run in runs:
        run.core.close()


class Reports:
    """A callback that keeps reports, or what is seen at them."""

    def __init__(self, reports, look=lambda report: report):
        self._reports, self._look = reports, look

    def on_step(self, report):
        self._reports.append(self._look(report))

    def on_save(self, step, path):
        pass

    on_evaluation = on_save


def weights(trainer):
    return {name: value.clone() for name, value in trainer.parts.strategy.weights()}


def test_the_figures_are_those_of_a_plain_loop_over_all_tokens(build):
    trainer = build("run.steps=1", engine="{use: off, by: 0.3, after: 0}")
    batches = []
    fill = trainer.parts.strategy.fill
    trainer.parts.strategy.fill = lambda batch, needs: batches.append(batch) or fill(batch, needs)
    right_BT = []
    step = trainer.parts.strategy.step

    def look(batch, objective):
        right_BT.append(trainer.parts.strategy.logprobs(batch).logprobs_BT)
        return step(batch, objective)

    trainer.parts.strategy.step = look
    metrics = trainer.step().metrics
    batch, sizes = batches[0], []
    for row, length in enumerate(batch.lengths_B.tolist()):
        sizes += [float(right_BT[0][row, place] - batch.engine_logprobs_BT[row, place]) for place in range(length)]
    ratios = [torch.tensor(size).exp().item() for size in sizes]
    assert metrics["gap/logprob_mean_abs"] == pytest.approx(sum(map(abs, sizes)) / len(sizes), rel=1e-5)
    assert metrics["gap/logprob_max_abs"] == pytest.approx(max(map(abs, sizes)), rel=1e-5)
    assert metrics["gap/logprob_p99_abs"] == pytest.approx(
        sorted(map(abs, sizes))[round(0.99 * len(sizes)) - 1], rel=0.011
    )
    assert metrics["gap/ratio_mean"] == pytest.approx(sum(ratios) / len(ratios), rel=1e-5)
    assert metrics["gap/ratio_max"] == pytest.approx(max(ratios), rel=1e-5)
    assert metrics["gap/prob_error"] == pytest.approx(1.35, abs=0.01)
    assert metrics["gap/version_lag"] == 0.0


def test_no_pass_is_made_for_the_measure(build):
    trainer = build("run.steps=1", "engine_gap.stop_above=10")
    asked = []
    fill = trainer.parts.strategy.fill
    trainer.parts.strategy.fill = lambda batch, needs: asked.append(needs) or fill(batch, needs)
    assert "gap/logprob_mean_abs" in trainer.step().metrics
    assert asked == [trainer.parts.needs]
    assert "old_logprobs" not in asked[0]


def test_a_large_gap_is_warned_of_and_trained_all_the_same(build, caplog):
    trainer = build()
    with caplog.at_level(logging.WARNING):
        trainer.run()
    [warning] = [record.getMessage() for record in caplog.records if "engine_gap" in record.getMessage()]
    assert warning.startswith("step 2: engine and trainer differ by 0.3")
    assert [round(report.metrics["gap/logprob_mean_abs"], 3) for report in trainer.reports] == [0.0, 0.3, 0.3]


@pytest.mark.parametrize(
    "sets",
    [(), ("optim.epochs=2",), ("optim.batch_size=2",), ("correction={use: band, high: 1.05}",)],
    ids=["one update", "epochs", "two updates", "a correction that masks every token"],
)
def test_a_stop_changes_no_weight_and_saves_the_last_good_step(build, sets):
    trainer = build("engine_gap.stop_above=0.2", *sets)
    seen = []
    trainer.parts.callbacks.append(Reports(seen, lambda report: weights(trainer)))
    with pytest.raises(GapTooLarge, match="step 2 was not trained"):
        trainer.run()
    after = weights(trainer)
    assert trainer.step_done == 1
    assert trainer.parts.checkpoints.newest(trainer.world).step == 1
    assert [report.step for report in trainer.reports] == [1]
    assert all(torch.equal(after[name], value) for name, value in seen[0].items())


def test_a_gap_under_the_limit_trains_on(build):
    trainer = build("engine_gap.stop_above=0.35", "optim.batch_size=2")
    trainer.run()
    assert trainer.step_done == 3


def test_tokens_that_a_correction_masks_are_measured(build):
    trainer = build("run.steps=1", engine="{use: off, by: 0.3, after: 0}")
    trainer.parts.needs = frozenset({"old_logprobs"})

    def correct(batch, world):
        return Corrected(None, batch.mask_BT & (torch.arange(batch.mask_BT.shape[1]) > 3), {})

    trainer.parts.correction = correct
    gauged = []
    gauge = trainer.parts.gauge
    trainer.parts.gauge = lambda batch: gauged.append(gauge(batch)) or gauged[-1]
    report = trainer.step()
    tokens = sum(len(rollout.token_ids) for group in report.groups for rollout in group.rollouts)
    assert gauged[0].tokens == tokens
    assert report.metrics["gap/logprob_mean_abs"] == gauged[0].mean


def test_a_limit_that_no_strategy_would_heed_is_refused(tmp_path):
    plugin = tmp_path / "blind.py"
    plugin.write_text(
        "from lightrft_core import hookimpl\nfrom lightrft_core.descriptors import Component\nLIGHTRFT_API = 1\n\n\n"
        "@hookimpl\ndef lightrft_strategies():\n    yield Component(name='blind', summary='None.', "
        "target='lightrft_engines.training.single:SingleStrategy', "
        "config='lightrft_engines.training.config:SingleConfig')\n"
    )
    with pytest.raises(Problems, match=r"blind measures no gap to the engine\. Leave engine_gap\.stop_above out"):
        small_run_file(
            f"plugins=[{plugin}]", "strategy.use=blind", "engine_gap.stop_above=1", "engine_gap.warn_above=0.5"
        )
