"""Seconds by phase: what is inside an inner phase is not the outer one's, and a phase may come again."""

import time

import pytest
from lightrft_core.phases import Phases


@pytest.fixture
def spend(monkeypatch):
    """Lets so many seconds pass."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def pass_by(seconds):
        now[0] += seconds

    return pass_by


def test_inner_phases_are_taken_out_of_outer_ones(spend):
    clock = Phases()
    with clock("outer"):
        spend(1)
        with clock("inner"):
            spend(4)
        spend(2)
    assert clock.seconds == {"inner": 4.0, "outer": 3.0}


def test_a_phase_that_comes_again_adds_up(spend):
    clock = Phases()
    for seconds in (1, 2):
        with clock("train"):
            spend(seconds)
    assert clock.seconds == {"train": 3.0}


def test_three_levels_count_each_second_once(spend):
    clock = Phases()
    with clock("a"):
        with clock("b"):
            spend(1)
            with clock("c"):
                spend(2)
        with clock("c"):
            spend(4)
        spend(8)
    assert clock.seconds == {"a": 8.0, "b": 1.0, "c": 6.0}


def test_a_phase_that_raises_is_counted_all_the_same(spend):
    clock = Phases()
    with pytest.raises(KeyError), clock("outer"), clock("inner"):
        spend(1)
        raise KeyError("stop")
    with clock("next"):
        spend(2)
    assert clock.seconds == {"inner": 1.0, "outer": 0.0, "next": 2.0}


def test_each_change_of_phase_is_told():
    told = []
    clock = Phases(told.append)
    with clock("outer"):
        with clock("inner"):
            pass
        assert told == ["outer", "inner", "outer"]
    assert told[-1] == "between phases"
