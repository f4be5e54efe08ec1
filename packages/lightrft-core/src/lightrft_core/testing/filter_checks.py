"""A filter: a yes or no about one group, which it does not change."""

import copy

from lightrft_core.testing import rollouts
from lightrft_core.testing.results import Case, Check, require


def answer_is_yes_or_no(case: Case) -> None:
    """A bool for every kind of group: mixed, all equal, partly and wholly unscored, a single rollout."""
    for group in rollouts.groups():
        answer = case.call(group)
        require(isinstance(answer, bool), f"group {group.prompt.id!r}: the answer is {answer!r}, not True or False")


def group_is_left_alone(case: Case) -> None:
    """Pure: the group is not changed, and a second call gives the same."""
    for group in rollouts.groups():
        before = copy.deepcopy(group)
        first = case.call(group)
        require(group == before, f"group {group.prompt.id!r} was changed")
        require(case.call(group) == first, f"group {group.prompt.id!r}: two calls differ")


def order_of_siblings_does_not_matter(case: Case) -> None:
    """The same rollouts in reverse."""
    for group in rollouts.groups():
        other = copy.deepcopy(group)
        other.rollouts.reverse()
        require(case.call(other) == case.call(group), f"group {group.prompt.id!r}: the order of siblings matters")


CHECKS: tuple[Check, ...] = (answer_is_yes_or_no, group_is_left_alone, order_of_siblings_does_not_matter)
