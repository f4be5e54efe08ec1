"""A shaper: sets the shaped reward of scored rollouts and touches nothing else."""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightrft_core.data import Group
from lightrft_core.protocols import SoloWorld, Stateful, World
from lightrft_core.sections import SamplerSection
from lightrft_core.testing import rollouts
from lightrft_core.testing.results import Case, Check, require
from lightrft_core.testing.toys import toy_setup
from lightrft_core.testing.worlds import ToyWorlds

TOLERANCE = 1e-9
Shaped = dict[tuple[str, int], float | None]


def build(case: Case, world: World | None = None) -> Any:  # Any: the shaper under test
    """A fresh one."""
    sampler = SamplerSection(max_new_tokens=rollouts.MAX_NEW_TOKENS)
    setup = case.given or toy_setup(case.run_dir, sampler=sampler, world=world)
    return case.target(case.options, setup)


def shape(shaper: Any, groups: Sequence[Group], world: World | None = None) -> tuple[Shaped, Mapping[str, float]]:
    """Shaped rewards by rollout, and metrics; `Any` is the shaper under test."""
    metrics = shaper.apply(groups, world or SoloWorld())
    shaped = {(item.prompt_id, item.index): item.shaped_reward for group in groups for item in group.rollouts}
    return shaped, metrics


def shaped_rewards_are_finite(case: Case) -> None:
    """A number for every scored rollout, None for the others; metrics are numbers."""
    groups = rollouts.groups()
    _, metrics = shape(build(case), groups)
    for rollout in (rollout for group in groups for rollout in group.rollouts):
        value, place = rollout.shaped_reward, f"{rollout.prompt_id}#{rollout.index}"
        if rollout.reward is None:
            require(value is None, f"{place} is unscored but got the shaped reward {value}")
        else:
            require(value is not None and math.isfinite(value), f"{place}: the shaped reward is {value}")
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    require(not bad, f"not finite: {', '.join(bad)}")


def only_the_shaped_reward_changes(case: Case) -> None:
    """Rewards, scores and tokens stay as they were."""
    groups = rollouts.groups()
    before = copy.deepcopy(groups)
    shape(build(case), groups)
    for rollout in (rollout for group in groups + before for rollout in group.rollouts):
        rollout.shaped_reward = None
    require(groups == before, "something else than shaped_reward was changed")


def order_does_not_matter(case: Case) -> None:
    """Groups in reverse."""
    expected, _ = shape(build(case), rollouts.groups())
    found, _ = shape(build(case), rollouts.groups()[::-1])
    _same(found, expected, "another order of groups")


def two_ranks_give_what_one_gives(case: Case) -> None:
    """Groups split over two ranks, and a rank without any; metrics are those of all groups."""
    expected, metrics = shape(build(case), rollouts.groups())
    for cut in (2, 6):
        shares = (rollouts.groups()[:cut], rollouts.groups()[cut:])
        found = ToyWorlds(2).split(lambda groups, world: shape(build(case, world), groups, world), shares)
        _same({**found[0][0], **found[1][0]}, expected, "two ranks")
        for _, other in found:
            gap = max((abs(other[name] - value) for name, value in metrics.items()), default=0.0)
            require(gap <= TOLERANCE, f"two ranks change metrics by {gap:.3g}: use world.sum")


def state_survives_a_resume(case: Case) -> str | None:
    """Where it has state: through JSON into a fresh one, which then gives the same."""
    first = build(case)
    if not isinstance(first, Stateful):
        return "it keeps no state"
    shape(first, rollouts.groups())
    second = build(case)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    _same(shape(second, rollouts.groups())[0], shape(first, rollouts.groups())[0], "a resume")
    return None


def _same(found: Shaped, expected: Shaped, what: str) -> None:
    gaps = [abs((found[key] or 0.0) - (value or 0.0)) for key, value in expected.items()]
    require(max(gaps) <= TOLERANCE, f"{what} changes shaped rewards by {max(gaps):.3g}")


CHECKS: tuple[Check, ...] = (
    shaped_rewards_are_finite,
    only_the_shaped_reward_changes,
    order_does_not_matter,
    two_ranks_give_what_one_gives,
    state_survives_a_resume,
)
