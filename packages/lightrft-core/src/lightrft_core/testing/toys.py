"""Toy components without torch: a bandit whose policy is a table of plain floats, small enough to follow by hand.

A prompt is one digit and the right answer is the next one (9 wraps to 0), followed by the stop token. `toy_setup`
builds everything that a component may ask its `Setup` for.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightrft_core.data import Group, Prompt, ScoreRequest, StepReport, seed_for
from lightrft_core.protocols import Json, RunStatus, Setup, SoloWorld, World
from lightrft_core.sections import ModelSection, OptimSection, RewardSection, RunSection, SamplerSection, TaskSection
from lightrft_core.testing.toy_model import (
    Rows,
    ToyEngine,
    ToyEngineConfig,
    ToyModelAdapter,
    ToyPolicy,
    ToyStrategy,
    ToyStrategyConfig,
    toy_advantage,
)
from lightrft_core.testing.worlds import ThreadWorld, ToyWorld, ToyWorlds

__all__ = [
    "Rows",
    "ThreadWorld",
    "ToyEngine",
    "ToyEngineConfig",
    "ToyModelAdapter",
    "ToyPolicy",
    "ToyReward",
    "ToyStrategy",
    "ToyStrategyConfig",
    "ToyTask",
    "ToyTaskConfig",
    "ToyTracker",
    "ToyWorld",
    "ToyWorlds",
    "toy_advantage",
    "toy_groups",
    "toy_prompts",
    "toy_setup",
]


class ToyTaskConfig(TaskSection):
    """Options of the toy task."""


class ToyTask:
    """Ten digits, each asking for its successor."""

    def __init__(self, config: ToyTaskConfig, setup: Setup) -> None:
        self._prompts = toy_prompts()[: config.max_prompts]
        self._shuffle, self._seed = config.shuffle, setup.run.seed
        self._drawn = 0

    def __len__(self) -> int:
        return len(self._prompts)

    def draw(self, num: int) -> list[Prompt]:
        """The next `num` prompts, pass after pass."""
        places = range(self._drawn, self._drawn + num)
        self._drawn += num
        return [self._order(place // len(self))[place % len(self)] for place in places]

    def everything(self) -> list[Prompt]:
        """All prompts, 0 to 9."""
        return list(self._prompts)

    def fingerprint(self) -> str:
        """Their number: the data never change."""
        return f"toy-{len(self)}"

    def state_dict(self) -> dict[str, Json]:
        """How many were drawn."""
        return {"drawn": self._drawn}

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Go on from there."""
        self._drawn = int(state["drawn"])

    def _order(self, epoch: int) -> list[Prompt]:
        prompts = list(self._prompts)
        if self._shuffle:
            random.Random(seed_for(self._seed, "toy", epoch)).shuffle(prompts)
        return prompts


class ToyReward:
    """1 for the right digit, 0 for another; a completion without any digit cannot be scored."""

    def __init__(self, config: RewardSection) -> None:
        self.config = config

    def score(self, requests: Sequence[ScoreRequest]) -> Sequence[float | None]:
        """One verdict a request."""
        return [float(item.response[:1] == item.reference) if item.response else None for item in requests]


class ToyTracker:
    """Keeps what it was told, for a test to read."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []
        self.evaluations: list[tuple[int, Mapping[str, float]]] = []
        self.status: RunStatus | None = None

    def log(self, report: StepReport) -> None:
        """Keep a step."""
        self.reports.append(report)

    def log_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep an evaluation."""
        self.evaluations.append((step, metrics))

    def close(self, status: RunStatus) -> None:
        """Keep the status."""
        self.status = status


def toy_prompts() -> list[Prompt]:
    """The ten prompts; the successor is the reference."""
    return [
        Prompt(id=f"toy-{digit}", messages=({"role": "user", "content": str(digit)},), reference=str((digit + 1) % 10))
        for digit in range(10)
    ]


def toy_setup(
    run_dir: Path, *, seed: int = 0, world: World | None = None, sampler: SamplerSection | None = None
) -> Setup:
    """A setup whose model adapter and strategy are toys; `ToyEngine(ToyEngineConfig(), setup)` serves them."""
    sampling = sampler or SamplerSection(group_size=4, max_new_tokens=3)
    setup = Setup(
        run=RunSection(seed=seed),
        optim=OptimSection(lr=0.5),
        sampler=sampling,
        model_section=ModelSection(path="toy"),
        run_dir=run_dir,
        num_optimizer_steps=1,
        world=world or SoloWorld(),
    )
    setup.model = ToyModelAdapter(setup.model_section, setup)
    setup.strategy = ToyStrategy(ToyStrategyConfig(), setup)
    return setup


def toy_groups(setup: Setup, *, num_prompts: int = 4, step: int = 1) -> list[Group]:
    """Scored groups that the toy engine generated."""
    from lightrft_core.data import Sampling
    from lightrft_core.drawing import sample_groups

    model, sampler = setup.require_model(), setup.sampler
    sampling = Sampling(max_new_tokens=sampler.max_new_tokens, stop_token_ids=model.stop_token_ids)
    engine = ToyEngine(ToyEngineConfig(), setup)
    prompts = toy_prompts()[:num_prompts]
    groups = sample_groups(engine, model, prompts, sampling, sampler.group_size, run_seed=setup.run.seed, purpose=step)
    for rollout, prompt in ((rollout, group.prompt) for group in groups for rollout in group.rollouts):
        rollout.reward = rollout.shaped_reward = float(rollout.text[:1] == prompt.reference)
        rollout.scores["accuracy"] = rollout.reward
    return groups
