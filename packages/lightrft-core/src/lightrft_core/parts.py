"""What a run is made of, as the trainer takes it: plain objects, and identities where the run names none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lightrft_core.abilities import RestingStrategy
from lightrft_core.checkpoints import Checkpoints
from lightrft_core.data import Batch, Tensor
from lightrft_core.filtering import Filters
from lightrft_core.gap import Gap
from lightrft_core.kl_term import KLTerm
from lightrft_core.memory import Meter, unmetered
from lightrft_core.mix_in import nothing
from lightrft_core.objective import Objective
from lightrft_core.protocols import (
    Advantages,
    Callback,
    Corrected,
    Engine,
    ModelAdapter,
    Sampler,
    Shaper,
    Strategy,
    Task,
    Tracker,
    World,
)
from lightrft_core.sections import CheckpointSection, EngineGapSection, EvaluationSection, OptimSection, RunSection

if TYPE_CHECKING:
    from lightrft_core.evaluation import Evaluator
    from lightrft_core.scoring import RewardSet
    from lightrft_core.stopping import Stopper
    from lightrft_core.store import RolloutStore


def unnoted(step: int, phase: str) -> None:
    """Nobody watches which phase of which step begins."""


def ungauged(batch: Batch) -> Gap | None:
    """The strategy measures no gap."""
    return None


class Restless:
    """Optimizer state that stays where it is."""

    def sleep(self) -> None:
        """Nothing moves."""

    def wake(self) -> None:
        """It is there."""


@dataclass
class Parts:
    """The plain objects a run is made of; `assembly` builds them from a run file."""

    task: Task
    sampler: Sampler
    engine: Engine
    rewards: "RewardSet"
    filters: Filters
    shapers: Sequence[Shaper]
    model: ModelAdapter
    strategy: Strategy
    advantage: Callable[[Batch, World], Advantages]
    objective: Objective
    kl: KLTerm | None
    correction: Callable[[Batch, World], Corrected]
    selectors: Sequence[Callable[[Batch, World], Tensor]]
    needs: frozenset[str]
    evaluator: "Evaluator | None"
    trackers: Sequence[Tracker]
    callbacks: Sequence[Callback]
    store: "RolloutStore | None"
    checkpoints: Checkpoints
    stopper: "Stopper"
    before_update: Callable[[], None] = nothing
    note: Callable[[int, str], None] = unnoted
    gauge: Callable[[Batch], Gap | None] = ungauged
    rest: RestingStrategy = field(default_factory=Restless)
    meter: Meter = unmetered


@dataclass(frozen=True)
class Plan:
    """How long the run goes and how each rollout is cut: arithmetic that was settled before anything started."""

    run: RunSection
    optim: OptimSection
    evaluation: EvaluationSection
    checkpoint: CheckpointSection
    num_steps: int
    prompts_per_step: int
    minibatches: int
    engine_gap: EngineGapSection = field(default_factory=EngineGapSection)
