"""Filters and bounded refill (dynamic sampling): groups that a filter drops are drawn anew, a few times at most."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from lightrft_core.data import Group
from lightrft_core.errors import NothingToTrain
from lightrft_core.protocols import World

logger = logging.getLogger(__name__)
Keep = Callable[[Group], bool]
Refill = Callable[[int, int], list[Group]]
_UNSCORED = ""  # no filter has this name


class Filters:
    """Named filters, all of which must keep a group. Without any, everything is kept."""

    def __init__(self, filters: Sequence[tuple[str, Keep]], max_rounds: int, world: World) -> None:
        self._filters, self._max_rounds, self._world = tuple(filters), max_rounds, world
        self._is_told = False

    def keep(self, groups: list[Group], refill: Refill) -> tuple[list[Group], Mapping[str, float]]:
        """The kept groups, refilled to as many as came in where the bound allows, and metrics over all ranks.

        `filter/kept_fraction` is the share of all groups that were drawn, `filter/filled_fraction` how much of the
        batch there is in the end; the first batch that stays short is a warning. `refill(missing_here, round)` is
        called on every rank alike, so that ranks stay in step. Raises `NothingToTrain` when nothing is left on all
        ranks together.
        """
        if not self._filters:
            return groups, {}
        wanted, dropped = len(groups), Counter[str]()  # by filter, and dropped groups in which nothing was scored
        kept = self._sift(groups, dropped)
        rounds = 0
        while rounds < self._max_rounds and self._world.sum([wanted - len(kept)])[0] > 0:
            rounds += 1
            kept += self._sift(refill(wanted - len(kept), rounds), dropped)
        return kept, self._report(kept, wanted, dropped, rounds)

    def _sift(self, groups: list[Group], dropped: Counter[str]) -> list[Group]:
        kept = []
        for group in groups:
            reason = next((name for name, keeps in self._filters if not keeps(group)), None)
            if reason is None:
                kept.append(group)
            else:
                dropped[reason] += 1
                dropped[_UNSCORED] += not group.rewards()
        return kept

    def _report(self, kept: list[Group], wanted: int, dropped: Counter[str], rounds: int) -> dict[str, float]:
        names = [name for name, _ in self._filters]
        sums = self._world.sum([len(kept), wanted, dropped[_UNSCORED], *(dropped[name] for name in names)])
        if not sums[0]:
            blind = f"; in {sums[2]:.0f} of them nothing could be scored, see the warnings above" if sums[2] else ""
            raise NothingToTrain(
                f"the filters {', '.join(names)} dropped every group in {rounds + 1} rounds of sampling{blind}",
                where="filters",
                hint="Make the prompts easier or harder so that siblings differ, raise sampler.group_size or "
                "sampler.max_refill_rounds, or leave the filter out.",
            )
        self._tell_short(sums[0], sums[1], rounds)
        drops = {f"filter/{name}_dropped": count for name, count in zip(names, sums[3:], strict=True)}
        shares = {
            "filter/kept_fraction": sums[0] / (sums[0] + sum(drops.values())),
            "filter/filled_fraction": sums[0] / sums[1],
        }
        return {**shares, "filter/refill_rounds": float(rounds), **drops}

    def _tell_short(self, kept: float, wanted: float, rounds: int) -> None:
        """Once, on one rank."""
        if kept >= wanted or self._is_told:
            return
        self._is_told = True
        if self._world.rank == 0:
            logger.warning(
                "filters: %.0f of %.0f groups are left after %d refills, and the step trains on these alone; raise "
                "sampler.max_refill_rounds if filter/filled_fraction stays low (told once)", kept, wanted, rounds
            )  # fmt: skip
