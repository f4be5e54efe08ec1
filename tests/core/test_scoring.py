"""Rewards of a run: routed, weighted, named; what cannot be scored is left out and never 0."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from lightrft_core.chosen import Chosen
from lightrft_core.data import Group, Prompt, Rollout
from lightrft_core.descriptors import RewardComponent
from lightrft_core.errors import UserError
from lightrft_core.plugins import Plugins
from lightrft_core.protocols import SoloWorld
from lightrft_core.scoring import RewardSet
from lightrft_core.sections import RewardSection
from lightrft_core.testing.worlds import ToyWorlds

REWARDS = """
import math
from lightrft_core.data import Score

ANSWERS = {"nan": math.nan, "none": None, "text": "1", "inf": math.inf, "half": 0.5, "zero": 0.0}

class Base:
    def __init__(self, config):
        self.config = config

class Length(Base):
    def score(self, requests):
        return [float(len(request.response)) for request in requests]

class Odd(Base):
    def score(self, requests):
        if any(request.response == "raise" for request in requests):
            raise ValueError("bad row")
        if any(request.response == "short" for request in requests):
            return []
        return [ANSWERS.get(request.response, 1.0) for request in requests]

class Parts(Base):
    def score(self, requests):
        return [Score(1.0, parts={"accuracy": 1.0, "format": 0.0}) for _ in requests]

class MoreParts(Base):
    def score(self, requests):
        return [Score(0.5, parts={"accuracy": 0.5}) for _ in requests]
"""


@pytest.fixture
def build(tmp_path: Path) -> Iterator:
    file = tmp_path / "rewards.py"
    file.write_text(REWARDS)
    sets: list[RewardSet] = []

    def make(*wanted: tuple[str, dict], world=None, isolated: bool = False, needs=()) -> RewardSet:
        chosen = []
        for target, options in wanted:
            component = RewardComponent(
                name=target.lower(), target=f"{file}:{target}", summary="", is_isolated=isolated, needs=frozenset(needs)
            )
            config = RewardSection(**options)
            chosen.append(Chosen("reward", config.name or component.name, component, config))
        sets.append(RewardSet(chosen, Plugins.load(), world or SoloWorld()))
        return sets[-1]

    yield make
    for rewards in sets:
        rewards.close()


def group(*texts: str, label: str | None = None, reference: str | None = None, name: str = "p1") -> Group:
    prompt = Prompt(name, ({"role": "user", "content": "?"},), label=label, reference=reference)
    rollouts = [Rollout(name, index, (1,), text, (0.0,), "stop", 0) for index, text in enumerate(texts)]
    return Group(prompt, (1,), rollouts)


def test_the_reward_is_the_weighted_sum_and_every_reward_is_named(build):
    scored = group("abc")
    rewards = build(("Length", {"weight": 0.5}), ("Odd", {"weight": -2.0, "name": "penalty"}))
    rewards.score([scored])
    rollout = scored.rollouts[0]
    assert rollout.reward == rollout.shaped_reward == 0.5 * 3 - 2.0 * 1
    assert rollout.scores == {"length": 3.0, "penalty": 1.0}
    assert rollout.unscored is None


def test_labels_route_and_no_labels_means_all(build):
    rewards = build(("Length", {"labels": ("math",)}), ("Odd", {}))
    math_group, other = group("abc", label="math"), group("abc", label="code", name="p2")
    rewards.score([math_group, other])
    assert math_group.rollouts[0].reward == 4.0
    assert other.rollouts[0].reward == 1.0
    assert other.rollouts[0].scores == {"odd": 1.0}


def test_a_label_that_no_reward_takes_is_a_user_error_naming_label_and_row(build):
    rewards = build(("Length", {"labels": ("math", "logic")}))
    with pytest.raises(UserError) as caught:
        rewards.check([group("a", label="code", name="train.jsonl:7").prompt])
    assert "prompt 'train.jsonl:7' has label 'code', and no reward takes it" in str(caught.value)
    assert "Labels that rewards name: logic, math" in str(caught.value)
    with pytest.raises(UserError, match="has no label, and no reward takes it"):
        rewards.score([group("a")])


def test_a_missing_reference_is_a_user_error_where_a_reward_needs_one(build):
    rewards = build(("Length", {}), needs=("reference",))
    with pytest.raises(UserError) as caught:
        rewards.score([group("a", name="train.jsonl:3")])
    assert "prompt 'train.jsonl:3' has no reference answer, which reward 'length' needs" in str(caught.value)
    assert "task.reference_key" in str(caught.value)
    rewards.score([group("a", reference="")])


@pytest.mark.parametrize("isolated", [False, True], ids=["here", "worker"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nan", "returned nan"),
        ("inf", "returned inf"),
        ("none", "returned None"),
        ("text", "returned '1' (str), expected a number"),
        ("raise", "raised ValueError: bad row"),
        ("short", "returned 0 scores for 1 samples"),
    ],
)
def test_what_cannot_be_scored_is_none_with_a_reason_and_the_others_keep_their_rewards(build, text, reason, isolated):
    scored = group("half", text, "zero")
    metrics = build(("Odd", {}), isolated=isolated).score([scored])
    assert [rollout.reward for rollout in scored.rollouts] == [0.5, None, 0.0]
    assert scored.rollouts[1].unscored == f"reward 'odd' on prompt 'p1', sample 1: {reason}"
    assert scored.rollouts[1].scores == {}
    assert scored.rewards() == [0.5, 0.0]
    assert metrics["reward/unscored_fraction"] == pytest.approx(1 / 3)
    assert metrics["reward/mean"] == metrics["reward/odd"] == 0.25


def test_one_reward_that_cannot_score_leaves_the_sample_unscored_whatever_the_others_say(build):
    scored = group("nan")
    build(("Length", {}), ("Odd", {})).score([scored])
    assert scored.rollouts[0].reward is None


def test_scoring_again_forgets_the_earlier_verdict(build):
    scored = group("nan")
    build(("Odd", {})).score([scored])
    build(("Length", {})).score([scored])
    assert scored.rollouts[0].unscored is None
    assert scored.rollouts[0].scores == {"length": 3.0}


def test_parts_keep_their_names_and_a_name_that_two_give_is_prefixed(build):
    scored = group("a")
    metrics = build(("Parts", {})).score([scored])
    assert scored.rollouts[0].scores == {"parts": 1.0, "accuracy": 1.0, "format": 0.0}
    assert metrics["accuracy"] == 1.0
    build(("Parts", {}), ("MoreParts", {})).score([scored])
    assert scored.rollouts[0].scores == {
        "parts": 1.0, "moreparts": 0.5, "parts/accuracy": 1.0, "moreparts/accuracy": 0.5, "format": 0.0,
    }  # fmt: skip


def test_two_rewards_of_one_name_are_refused(build):
    with pytest.raises(UserError, match="two rewards are called 'length'"):
        build(("Length", {}), ("Length", {}))


def test_means_are_over_all_ranks(build):
    def run(world):
        rewards = build(("Odd", {}), world=world)
        return rewards.score([group("half", "nan")] if world.rank == 0 else [group("zero", name="p2")])

    for metrics in ToyWorlds(2).run(run):
        assert metrics["reward/mean"] == 0.25
        assert metrics["reward/unscored_fraction"] == pytest.approx(1 / 3)


def test_the_first_reasons_are_logged(build, caplog):
    build(("Odd", {})).score([group(*["nan"] * 10)])
    assert "10 of 10 samples could not be scored" in caplog.text
    assert caplog.text.count("unscored: reward 'odd'") == 3


def test_no_groups_give_no_metrics(build):
    assert build(("Odd", {})).score([]) == {}


def test_start_finds_a_reward_that_cannot_be_loaded(tmp_path):
    component = RewardComponent(name="gone", target=f"{tmp_path}/none.py:Gone", summary="")
    rewards = RewardSet([Chosen("reward", "gone", component, RewardSection())], Plugins.load(), SoloWorld())
    with pytest.raises(UserError, match="reward 'gone': raised FileNotFoundError"):
        rewards.start()


def test_an_unscored_sample_changes_no_statistic_of_its_siblings(build):
    with_bad, without = group("half", "nan", "zero"), group("half", "zero")
    build(("Odd", {})).score([with_bad, without])

    def mean_and_spread(values):
        mean = sum(values) / len(values)
        return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))

    assert mean_and_spread(with_bad.rewards()) == mean_and_spread(without.rewards())
