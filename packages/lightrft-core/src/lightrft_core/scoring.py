"""All rewards of a run: routed by label, weighted, summed, with every part by its name.

A rollout that any of its rewards could not score is *unscored*: its reward is None, its reason is kept, and nothing
takes it for 0.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from lightrft_core.chosen import Chosen
from lightrft_core.data import Group, Prompt, Rollout, Score, ScoreRequest
from lightrft_core.descriptors import RewardComponent
from lightrft_core.errors import UserError
from lightrft_core.isolation import IsolatedReward, WorkerSpec
from lightrft_core.measures import means, rollout_pairs
from lightrft_core.protocols import Reward, World
from lightrft_core.sections import RewardSection
from lightrft_core.verdicts import as_scores, raised

if TYPE_CHECKING:
    from lightrft_core.plugins import Plugins

MAX_LOGGED_REASONS = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Judge:
    """One reward of the run, ready to be called."""

    name: str
    config: RewardSection
    needs_reference: bool
    score: Callable[[Sequence[ScoreRequest]], Sequence[Score]]
    start: Callable[[], None]
    close: Callable[[], None]

    def takes(self, prompt: Prompt) -> bool:
        return self.config.labels is None or prompt.label in self.config.labels


class RewardSet:
    """Scores groups with all rewards that a run names."""

    def __init__(self, rewards: Sequence[Chosen], plugins: "Plugins", world: World) -> None:
        self._world = world
        _refuse_twins([chosen.name for chosen in rewards])
        self._judges = [_judge(chosen, plugins) for chosen in rewards]

    def start(self) -> None:
        """Load every reward now. Raises `UserError` where one cannot be loaded."""
        for judge in self._judges:
            judge.start()

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise `UserError` for the first prompt that no reward takes, or that lacks a reference which one needs."""
        for prompt in prompts:
            judges = self._judges_of(prompt)
            for judge in judges:
                if judge.needs_reference and prompt.reference is None:
                    raise UserError(
                        f"prompt {prompt.id!r} has no reference answer, which reward {judge.name!r} needs",
                        where="task.reference_key",
                        hint="Name the column that holds the answer, give the rows a `ground_truth`, or give this "
                        "reward `labels` that leave such prompts out.",
                    )

    def score(self, groups: Sequence[Group]) -> Mapping[str, float]:
        """Set `reward`, `scores` and `unscored` of every rollout; return means over all ranks.

        Raises `UserError` as `check` does.
        """
        self.check([group.prompt for group in groups])
        rows = [(group.prompt, rollout) for group in groups for rollout in group.rollouts]
        verdicts: list[list[tuple[_Judge, Score]]] = [[] for _ in rows]
        for judge in self._judges:
            mine = [number for number, (prompt, _) in enumerate(rows) if judge.takes(prompt)]
            requests = [_request(*rows[number]) for number in mine]
            for number, score in zip(mine, judge.score(requests), strict=True):
                verdicts[number].append((judge, score))
        for (_, rollout), given in zip(rows, verdicts, strict=True):
            _settle(rollout, given)
        _report([rollout for _, rollout in rows])
        pairs = rollout_pairs(groups)
        return means({name: pair for name, pair in pairs.items() if _is_reward(name)}, self._world)

    def close(self) -> None:
        """End all worker processes."""
        for judge in self._judges:
            judge.close()

    def _judges_of(self, prompt: Prompt) -> list[_Judge]:
        judges = [judge for judge in self._judges if judge.takes(prompt)]
        if judges:
            return judges
        label = "no label" if prompt.label is None else f"label {prompt.label!r}"
        known = sorted({label for judge in self._judges for label in judge.config.labels or ()})
        raise UserError(
            f"prompt {prompt.id!r} has {label}, and no reward takes it",
            where="rewards",
            hint=f"Labels that rewards name: {', '.join(known) or 'none'}. Add the label to a reward's `labels`, or "
            "leave `labels` out to score every prompt.",
        )


def _refuse_twins(names: Sequence[str]) -> None:
    twins = [name for name, count in Counter(names).items() if count > 1]
    if twins:
        raise UserError(f"two rewards are called {twins[0]!r}", where="rewards", hint="Give one of them a `name`.")


def _judge(chosen: Chosen, plugins: "Plugins") -> _Judge:
    component = cast(RewardComponent, chosen.component)
    config = cast(RewardSection, chosen.config)
    needs_reference = "reference" in component.needs
    if component.is_isolated:
        worker = IsolatedReward(WorkerSpec.of(chosen.name, component, config))
        return _Judge(chosen.name, config, needs_reference, worker.score, worker.start, worker.close)
    reward: Reward = plugins.target(component)(config)
    return _Judge(chosen.name, config, needs_reference, lambda requests: _guarded(reward, requests), _nothing, _nothing)


def _nothing() -> None:
    """A reward inside this process is loaded already, and has nothing to end."""


def _guarded(reward: Reward, requests: Sequence[ScoreRequest]) -> list[Score]:
    """Call a reward inside this process; where the whole call fails, its rows are tried singly."""
    if not requests:
        return []
    try:
        answers = list(reward.score(requests))
    except Exception as error:  # a stranger's reward: the row is named, the run goes on
        if len(requests) == 1:
            return [raised(error)]
        return [score for request in requests for score in _guarded(reward, [request])]
    if len(answers) != len(requests) > 1:
        return [score for request in requests for score in _guarded(reward, [request])]
    return as_scores(answers, len(requests))


def _request(prompt: Prompt, rollout: Rollout) -> ScoreRequest:
    return ScoreRequest(rollout.text, rollout.token_ids, prompt, rollout.finish_reason)


def _settle(rollout: Rollout, given: Sequence[tuple[_Judge, Score]]) -> None:
    """Write the verdicts into the rollout."""
    failed = [(judge.name, score.reason) for judge, score in given if score.value is None]
    rollout.scores = {} if failed else _named(given)
    rollout.shaped_reward = None
    if failed:
        name, reason = failed[0]
        rollout.reward = None
        rollout.unscored = f"reward {name!r} on prompt {rollout.prompt_id!r}, sample {rollout.index}: {reason}"
        return
    rollout.unscored = None
    rollout.reward = sum(judge.config.weight * score.value for judge, score in given if score.value is not None)
    rollout.shaped_reward = rollout.reward


def _named(given: Sequence[tuple[_Judge, Score]]) -> dict[str, float]:
    """Each reward's value under its name, and its parts; a part whose name is taken gets `reward/part`."""
    named = {judge.name: score.value for judge, score in given if score.value is not None}
    givers = Counter(part for _, score in given for part in score.parts)
    for judge, score in given:
        for part, value in score.parts.items():
            is_taken = givers[part] > 1 or (part in named and part != judge.name)
            named[f"{judge.name}/{part}" if is_taken else part] = value
    return named


def _report(rollouts: Sequence[Rollout]) -> None:
    reasons = [rollout.unscored for rollout in rollouts if rollout.unscored is not None]
    if reasons:
        logger.warning("%d of %d samples could not be scored", len(reasons), len(rollouts))
    for reason in reasons[:MAX_LOGGED_REASONS]:
        logger.warning("unscored: %s", reason)


def _is_reward(name: str) -> bool:
    return name == "accuracy" or name.startswith("reward/")
