"""Filters refill what they drop, within their bound, and say so."""

import pytest
from lightrft_core.data import Group, Prompt, Rollout
from lightrft_core.errors import RunFailed
from lightrft_core.filtering import Filters
from lightrft_core.protocols import SoloWorld


def groups(*names):
    return [Group(Prompt(name, ()), (), []) for name in names]


def even(group):
    return int(group.prompt.id) % 2 == 0


def test_without_filters_everything_is_kept():
    given = groups("1", "2")
    assert Filters([], 3, SoloWorld()).keep(given, lambda missing, round_: []) == (given, {})


def test_dropped_groups_are_refilled_until_full():
    fresh = iter(range(5, 99))
    asked = []

    def refill(missing, round_):
        asked.append((missing, round_))
        return groups(*(str(next(fresh)) for _ in range(missing)))

    kept, metrics = Filters([("even", even)], 9, SoloWorld()).keep(groups("1", "2", "3", "4"), refill)
    assert [group.prompt.id for group in kept] == ["2", "4", "6", "8"]
    assert asked == [(2, 1), (1, 2), (1, 3)]
    assert metrics == {
        "filter/kept_fraction": 0.5,
        "filter/filled_fraction": 1.0,
        "filter/refill_rounds": 3.0,
        "filter/even_dropped": 4.0,
    }


def test_the_bound_is_kept_and_reported(caplog):
    filters = Filters([("even", even)], 2, SoloWorld())
    for _ in range(2):
        kept, metrics = filters.keep(groups("1", "2"), lambda missing, round_: groups(*["3"] * missing))
    assert len(kept) == 1
    assert caplog.messages == [
        "filters: 1 of 2 groups are left after 2 refills, and the step trains on these alone; raise "
        "sampler.max_refill_rounds if filter/filled_fraction stays low (told once)"
    ]
    assert metrics["filter/filled_fraction"] == 0.5
    assert metrics["filter/kept_fraction"] == 0.25
    assert metrics["filter/refill_rounds"] == 2.0


def test_nothing_left_is_an_error_with_advice():
    with pytest.raises(RunFailed, match=r"filters: the filters even dropped every group in 2 rounds.*group_size"):
        Filters([("even", even)], 1, SoloWorld()).keep(groups("1"), lambda missing, round_: groups("3"))


def test_groups_in_which_nothing_was_scored_are_told_apart_from_dull_ones():
    scored = groups("1")[0]
    scored.rollouts.append(Rollout("1", 0, (1,), "x", (-0.1,), "stop", 0, reward=1.0))
    with pytest.raises(RunFailed, match=r"dropped every group in 1 rounds of sampling; in 2 of them nothing could be"):
        Filters([("even", even)], 0, SoloWorld()).keep([scored, *groups("3", "5")], lambda missing, round_: [])
