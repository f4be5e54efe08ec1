"""Peaks of a process are those since the last look; phases keep theirs apart; a table tells where a run's time went."""

import logging
import time

import pytest
from lightrft_core import memory
from lightrft_core.data import StepReport
from lightrft_core.memory import meter_of, process_peak, unmetered
from lightrft_core.phase_report import PhaseReport
from lightrft_core.phases import GIB, Phases, PhaseTable, largest
from lightrft_core.testing.toys import ToyWorlds

from tests.core.toy_run import Options, toy_run

MIB = 1 << 20


def grow(mebibytes):
    """Take memory and give it back at once."""
    taken = bytearray(mebibytes * MIB)
    del taken


def test_what_was_given_back_is_in_the_peak_and_not_in_the_next_one():
    process_peak()
    grow(300)
    high, low = process_peak(), process_peak()
    assert 290 * MIB < high - low < 330 * MIB


def test_a_look_costs_less_than_a_millisecond():
    start = time.perf_counter()
    for _ in range(50):
        process_peak()
    assert (time.perf_counter() - start) / 50 < 1e-3


def test_where_the_peak_cannot_be_set_back_it_is_what_there_is_now(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_RESET", tmp_path / "missing" / "clear_refs")
    process_peak()
    grow(300)
    assert abs(process_peak() - process_peak()) < 30 * MIB


def test_where_there_is_no_proc_nothing_is_known(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    assert process_peak() is None
    (tmp_path / "status").write_text("Name: python\n")
    assert process_peak() is None


class OnDevice:
    """A strategy with a device."""

    def peak_bytes(self):
        return 5.0


class OnCpu:
    """One without."""

    def peak_bytes(self):
        return None


def test_the_device_is_measured_where_there_is_one():
    assert meter_of(OnDevice())() == 5.0
    assert meter_of(OnCpu()) is meter_of(object()) is process_peak


def test_the_memory_of_a_moment_belongs_to_the_innermost_phase():
    before, outer, inner, rest, between, again = 99.0, 1.0, 7.0, 2.0, 98.0, 4.0
    readings = [before, outer, inner, rest, between, again]
    clock = Phases(meter=lambda: readings.pop(0))
    with clock("outer"), clock("inner"):
        pass
    with clock("inner"):
        pass
    assert clock.peaks == {"outer": 2.0, "inner": 7.0}


def test_a_phase_of_which_nothing_is_known_has_no_peak():
    clock = Phases(meter=unmetered)
    with clock("train"):
        pass
    assert clock.peaks == {}


def test_the_largest_of_ranks_counts_whatever_phases_they_had():
    assert largest({"a": 1.0, "b": 5.0}, {"a": 3.0, "c": 2.0}) == {"a": 3.0, "b": 5.0, "c": 2.0}


@pytest.fixture
def table():
    table = PhaseTable()
    table.add({"generate": 30.0, "train": 60.0}, {"generate": GIB, "train": 2.5 * GIB})
    table.add({"generate": 0.0, "save": 10.0}, {"generate": 2 * GIB})
    return table


def test_the_table_has_seconds_shares_and_peaks_the_longest_phase_first(table):
    assert table.lines() == [
        "phase     seconds  share  peak, GiB",
        "train        60.0  60.0%       2.50",
        "generate     30.0  30.0%       2.00",
        "save         10.0  10.0%          -",
    ]


def test_it_is_logged_after_the_first_step_and_told_at_the_end(table, caplog):
    said = []
    report = PhaseReport(table, said.append)
    with caplog.at_level(logging.INFO):
        report.on_step(StepReport(3, {}, {}))
        report.on_step(StepReport(4, {}, {}))
        assert said == []
        report.on_end("failed")
    assert said == table.lines()
    first, last = (record.getMessage() for record in caplog.records)
    assert first.startswith("phases of step 3:\nphase ")
    assert last.startswith("phases of the run:\nphase ")


def test_a_run_without_a_step_tells_no_table(table):
    said = []
    PhaseReport(table, said.append).on_end("failed")
    assert said == []


def test_a_run_reports_the_memory_of_each_phase(tmp_path):
    run = toy_run(tmp_path, Options(steps=2))
    run.parts.meter = process_peak
    run.trainer.run()
    for report in run.tracker.reports:
        assert report.memory.keys() == report.seconds.keys()
        assert all(0.01 < value < 64 for value in report.memory.values())
        assert report.by_phase()["memory/train_gb"] == report.memory["train"]
    assert {"evaluate", "save", "generate", "train"} <= run.trainer.phases.peaks.keys()


def test_the_rank_that_needs_most_is_reported(tmp_path):
    def work(world):
        run = toy_run(tmp_path, Options(steps=1, world=world))
        run.parts.meter = lambda: (1 + world.rank) * GIB
        run.trainer.run()
        return run

    one, other = ToyWorlds(2).run(work)
    for run in (one, other):
        assert set(run.tracker.reports[0].memory.values()) == {2.0}
        assert set(run.trainer.phases.peaks.values()) == {2 * GIB}


def test_state_rests_from_the_start_to_training_and_from_there_to_the_next(tmp_path):
    run = toy_run(tmp_path, Options(steps=2))

    class Noted:
        def sleep(self):
            run.journal.note("state sleeps")

        def wake(self):
            run.journal.note("state wakes")

    run.parts.rest = Noted()
    run.trainer.run()
    kept = [
        event for event in run.journal.events if event in ("state sleeps", "state wakes", "train", "sync", "generate")
    ]
    step = ["generate", "state wakes", "train", "state sleeps", "sync"]
    assert kept == ["state sleeps", "generate", *step, *step, "generate"]
