"""Evaluation: the same draw, sample and score as training, over the whole held-out set, with its own sampling.

Prompts are split over ranks without dropping a tail; every mean is taken over all of them. Seeds do not depend on the
step, so two evaluations differ by the weights alone.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from lightrft_core.data import Group, Sampling
from lightrft_core.drawing import sample_groups
from lightrft_core.measures import means, rollout_pairs
from lightrft_core.protocols import Engine, ModelAdapter, Task, World
from lightrft_core.scoring import RewardSet

EVALUATION = "evaluation"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluator:
    """Measures the engine's present weights on a task."""

    task: Task
    engine: Engine
    model: ModelAdapter
    rewards: RewardSet
    sampling: Sampling
    num_samples: int
    metric: str | None
    seed: int
    world: World

    def measure(self, step: int) -> tuple[Mapping[str, float], list[Group]]:
        """Metrics over all ranks, named `eval/...` with the chosen one as `eval/score`, and this rank's groups.

        Without `eval/score` where nothing could be scored, or where no reward gives the chosen metric.
        """
        prompts = self.task.everything()[self.world.rank :: self.world.size]
        groups = sample_groups(
            self.engine, self.model, prompts, self.sampling, self.num_samples, run_seed=self.seed, purpose=EVALUATION
        )
        self.rewards.score(groups)
        measured = means(rollout_pairs(groups), self.world)
        named = {_name(name): value for name, value in measured.items() if not name.startswith("group/")}
        named["eval/num_scored"] = self.world.sum([sum(len(group.rewards()) for group in groups)])[0]
        return {**self._score(measured), **named}, groups

    def _score(self, measured: Mapping[str, float]) -> dict[str, float]:
        chosen = self.metric or ("accuracy" if "accuracy" in measured else "reward/mean")
        found = [measured[name] for name in (chosen, f"reward/{chosen}") if name in measured]
        if not found:
            known = ", ".join(sorted(name.removeprefix("reward/") for name in measured)) or "nothing"
            logger.warning("evaluation.metric: %r was not measured, only %s", chosen, known)
        return {"eval/score": found[0]} if found else {}


def _name(name: str) -> str:
    return "eval/reward" if name == "reward/mean" else f"eval/{name.removeprefix('reward/')}"
