"""A whole run made of toys, without torch: parts that write into one journal what they are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightrft_algos.samplers.plain import PlainConfig, PlainSampler
from lightrft_core.assembly import uncorrected
from lightrft_core.checkpoints import Checkpoints
from lightrft_core.chosen import Chosen
from lightrft_core.data import Batch, GenerateRequest, Group, Sampling, StepStats
from lightrft_core.descriptors import RewardComponent
from lightrft_core.evaluation import Evaluator
from lightrft_core.filtering import Filters
from lightrft_core.kl_term import KLTerm
from lightrft_core.objective import Objective
from lightrft_core.parts import Parts, Plan
from lightrft_core.plugins import Plugins
from lightrft_core.protocols import Shaper, SoloWorld, World
from lightrft_core.scoring import RewardSet
from lightrft_core.sections import (
    CheckpointSection,
    EvaluationSection,
    OptimSection,
    RewardSection,
    RunSection,
    SamplerSection,
)
from lightrft_core.stopping import Stopper
from lightrft_core.store import RolloutStore
from lightrft_core.testing.toys import (
    ToyEngine,
    ToyEngineConfig,
    ToyModelAdapter,
    ToyStrategy,
    ToyStrategyConfig,
    ToyTask,
    ToyTaskConfig,
    ToyTracker,
    toy_advantage,
    toy_setup,
)
from lightrft_core.trainer import Trainer

REWARD = RewardComponent(
    name="toy", target="lightrft_core.testing.toys:ToyReward", summary="The successor.", is_isolated=False
)
Keep = Callable[[Group], bool]


@dataclass
class Journal:
    """What happened, in order, and what the engine and the strategy were given; `on` is called at each event."""

    events: list[str] = field(default_factory=list)
    requests: list[GenerateRequest] = field(default_factory=list)
    minibatches: list[Batch] = field(default_factory=list)
    objectives: list[Objective] = field(default_factory=list)
    on: Callable[[str], None] = lambda event: None
    naps: list[tuple[str, str]] = field(default_factory=list)  # with the event before

    def note(self, event: str) -> None:
        self.events.append(event)
        self.on(event)


class NotingTask(ToyTask):
    journal: Journal

    def draw(self, num):
        self.journal.note(f"draw {num}")
        return super().draw(num)


class NotingModel(ToyModelAdapter):
    journal: Journal

    def collate(self, groups):
        self.journal.note("collate")
        return super().collate(groups)


class NotingEngine(ToyEngine):
    journal: Journal

    def generate(self, requests):
        self.journal.requests += requests
        self.journal.note("generate")
        return super().generate(requests)

    def sleep(self):
        self.journal.naps.append(("sleep", self.journal.events[-1]))

    def wake(self):
        self.journal.naps.append(("wake", self.journal.events[-1]))


class NotingStrategy(ToyStrategy):
    journal: Journal

    def fill(self, batch, needs):
        self.journal.note(f"fill {','.join(sorted(needs))}".strip())
        super().fill(batch, needs)

    def step(self, minibatch, objective) -> StepStats:
        self.journal.minibatches.append(minibatch)
        self.journal.objectives.append(objective)
        self.journal.note("train")
        return super().step(minibatch, objective)

    def weights(self):
        self.journal.note("sync")
        return super().weights()


class NotingRewards(RewardSet):
    journal: Journal

    def score(self, groups):
        self.journal.note("score")
        return super().score(groups)


@dataclass
class Clock:
    """A clock that a test moves."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class ToyRun:
    """A trainer with what a test looks at."""

    trainer: Trainer
    journal: Journal
    tracker: ToyTracker
    clock: Clock

    @property
    def parts(self) -> Parts:
        return self.trainer.parts

    @property
    def logits(self) -> dict[str, list[float]]:
        return {name: list(row) for name, row in self.parts.strategy.policy.logits.items()}


@dataclass(frozen=True)
class Options:
    """What may differ between toy runs."""

    steps: int = 2
    prompts: int = 4
    minibatches: int = 1
    num_rows: int | None = None
    world: World = field(default_factory=SoloWorld)
    run: RunSection = field(default_factory=lambda: RunSection(seed=3))
    optim: OptimSection = field(default_factory=OptimSection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    filters: Sequence[tuple[str, Keep]] = ()
    max_rounds: int = 4
    shapers: Sequence[Shaper] = ()
    kl: KLTerm | None = None
    needs: frozenset[str] = frozenset()
    engine: type[NotingEngine] = NotingEngine
    strategy: type[NotingStrategy] = NotingStrategy
    max_time: float | None = None


def toy_run(folder: Path, options: Options = Options()) -> ToyRun:
    """Build it; the folder is shared by all ranks."""
    folder.mkdir(exist_ok=True)
    journal, tracker, clock = Journal(), ToyTracker(), Clock()
    sampler = SamplerSection(group_size=4, max_new_tokens=3, prompts_per_step=options.prompts)
    setup = toy_setup(folder, seed=options.run.seed, world=options.world, sampler=sampler)
    setup.model = NotingModel(setup.model_section, setup)
    strategy = options.strategy(ToyStrategyConfig(), setup)
    strategy.journal = setup.model.journal = journal
    setup.strategy = strategy
    engine = options.engine(ToyEngineConfig(), setup)
    engine.journal = journal
    task = NotingTask(ToyTaskConfig(max_prompts=options.num_rows), setup)
    task.journal = journal
    rewards = NotingRewards([Chosen("reward", "accuracy", REWARD, RewardSection())], Plugins(rows=()), options.world)
    rewards.journal = journal
    evaluator = Evaluator(
        task=ToyTask(ToyTaskConfig(), setup),
        engine=engine,
        model=setup.model,
        rewards=rewards,
        sampling=Sampling(max_new_tokens=3, temperature=0.0, stop_token_ids=setup.model.stop_token_ids),
        num_samples=1,
        metric=None,
        seed=options.run.seed,
        world=options.world,
    )
    parts = Parts(
        task=task,
        sampler=PlainSampler(PlainConfig(**sampler.model_dump()), setup),
        engine=engine,
        rewards=rewards,
        filters=Filters(options.filters, options.max_rounds, options.world),
        shapers=options.shapers,
        model=setup.model,
        strategy=strategy,
        advantage=toy_advantage,
        objective=Objective(loss=lambda inputs: None),
        kl=options.kl,
        correction=uncorrected,
        selectors=[],
        needs=options.needs,
        evaluator=evaluator,
        trackers=[tracker],
        callbacks=[],
        store=RolloutStore(folder / f"rollouts{options.world.rank}.sqlite"),
        checkpoints=Checkpoints(folder / "checkpoints", options.checkpoint.keep),
        stopper=Stopper(options.max_time, clock=clock),
    )
    plan = Plan(
        run=options.run,
        optim=options.optim,
        evaluation=options.evaluation,
        checkpoint=options.checkpoint,
        num_steps=options.steps,
        prompts_per_step=options.prompts,
        minibatches=options.minibatches,
    )
    journal.events.clear()
    return ToyRun(Trainer(parts, plan), journal, tracker, clock)
