"""From a resolved run file to the plain objects of a run. The one place where names become parts.

Functions get their config bound; classes are built as `Target(config, setup)`, in the order in which they need each
other: model adapter, tasks, strategy, engine, then everything else.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from lightrft_core.abilities import GaugingStrategy, RestingStrategy
from lightrft_core.batch_rule import BatchPlan, check_batch
from lightrft_core.checkpoints import Checkpoints
from lightrft_core.data import Batch, Sampling
from lightrft_core.evaluation import Evaluator
from lightrft_core.filtering import Filters
from lightrft_core.frozen import require_trainable
from lightrft_core.kl_term import KLTerm, kl_term
from lightrft_core.memory import meter_of
from lightrft_core.mix_in import before_update, load_examples
from lightrft_core.objective import Objective
from lightrft_core.parts import Parts, Plan, Restless, ungauged
from lightrft_core.plugins import Plugins
from lightrft_core.protocols import Corrected, Engine, ModelAdapter, Sampler, Setup, Strategy, Task, World
from lightrft_core.rundir import RunDir
from lightrft_core.runfile import Chosen, RunFile
from lightrft_core.scoring import RewardSet
from lightrft_core.sections import KLSection, LossSection, SamplerSection
from lightrft_core.selftest import SelfTest
from lightrft_core.setups import first_setup
from lightrft_core.stopping import Stopper
from lightrft_core.store import RolloutStore
from lightrft_core.trainer import Trainer

Part = Any  # whatever a plugin's target builds; its protocol is stated where it is used


@dataclass(frozen=True)
class Builder:
    """Builds chosen components, with the setup as it stands."""

    plugins: Plugins
    setup: Setup

    def instance(self, chosen: Chosen) -> Part:
        """A class target, built."""
        return self.plugins.target(chosen.component)(chosen.config, self.setup)

    def function(self, chosen: Chosen) -> Callable[..., Part]:
        """A function target with its config bound."""
        return partial(self.plugins.target(chosen.component), config=chosen.config)


@dataclass(frozen=True)
class Core:
    """What training, evaluation, export and the self-test share: model, strategy, engine, rewards, tasks."""

    builder: Builder
    setup: Setup
    model: ModelAdapter
    strategy: Strategy
    engine: Engine
    rewards: RewardSet
    task: Task | None
    evaluation_task: Task | None
    batch: BatchPlan
    num_steps: int

    @property
    def world(self) -> World:
        """The ranks of this run."""
        return self.strategy.world

    def close(self) -> None:
        """Free engine, workers and process group."""
        self.rewards.close()
        self.engine.close()
        self.strategy.close()


@dataclass(frozen=True)
class Rehearsal:
    """What a dry run needs: everything but weights."""

    model: ModelAdapter
    task: Task
    evaluation_task: Task | None
    rewards: RewardSet
    batch: BatchPlan
    num_steps: int


def rehearse(run_file: RunFile, plugins: Plugins) -> Rehearsal:
    """Build tokenizer, task and rewards; no weights are loaded and nothing is written."""
    plan = check_batch(run_file, 1)
    require_trainable(run_file)
    builder = Builder(plugins, first_setup(run_file, plugins, Path()))
    builder.setup.model = builder.instance(run_file.model)
    task = builder.instance(run_file.task)
    held_out = builder.instance(run_file.evaluation_task) if run_file.evaluation_task else None
    if run_file.optim.ptx is not None:
        load_examples(run_file.optim.ptx, builder.setup.require_model())
    rewards = RewardSet(run_file.rewards, plugins, builder.setup.world)
    return Rehearsal(builder.setup.require_model(), task, held_out, rewards, plan, _num_steps(run_file, task))


def needs_of(run_file: RunFile) -> frozenset[str]:
    """Capability words of all named parts, and what the KL and the correction imply."""
    chosen = [run_file.advantage, run_file.loss, *run_file.selectors, *run_file.filters, *run_file.shapers]
    needs = {word for part in chosen for word in part.component.needs}
    if run_file.kl is not None:
        needs |= {"ref_logprobs", *run_file.kl.component.needs}
        if cast(KLSection, run_file.kl.config).place == "reward":
            needs.add("old_logprobs")
    if run_file.correction is not None:
        needs |= {"old_logprobs", *run_file.correction.component.needs}
    return frozenset(needs)


def build_core(run_file: RunFile, plugins: Plugins, run_dir: RunDir, world_size: int, *, train: bool = True) -> Core:
    """Model, strategy and engine, loaded, after the batch arithmetic is checked.

    Without `train` the policy is all that is loaded."""
    plan = check_batch(run_file, world_size)
    if train:
        require_trainable(run_file)
    builder = Builder(plugins, first_setup(run_file, plugins, run_dir.path))
    setup = builder.setup
    setup.learns, setup.needs = train, needs_of(run_file) if train else frozenset()
    setup.critic = run_file.critic if train and run_file.needs_values else None
    setup.model = builder.instance(run_file.model)
    task = builder.instance(run_file.task) if train else None
    evaluation_task = builder.instance(run_file.evaluation_task) if run_file.evaluation_task else None
    num_steps = _num_steps(run_file, task)
    setup.run = run_file.run.model_copy(update={"steps": num_steps})
    setup.num_optimizer_steps = num_steps * plan.num_minibatches * run_file.optim.epochs
    setup.strategy = strategy = cast(Strategy, builder.instance(run_file.strategy))
    setup.world = strategy.world
    engine = cast(Engine, builder.instance(run_file.engine))
    rewards = RewardSet(run_file.rewards, plugins, strategy.world)
    model = setup.require_model()
    return Core(builder, setup, model, strategy, engine, rewards, task, evaluation_task, plan, num_steps)


def build_trainer(core: Core, run_file: RunFile, run_dir: RunDir, stopper: Stopper) -> Trainer:
    """The whole run."""
    build, world = core.builder, core.world
    task = _required(core.task)
    sampler = cast(Sampler, build.instance(run_file.sampler))
    filters = Filters(
        [(item.name, build.function(item)) for item in run_file.filters], core.setup.sampler.max_refill_rounds, world
    )
    kl = None
    if run_file.kl is not None:
        kl = kl_term(build.function(run_file.kl), cast(KLSection, run_file.kl.config), core.strategy)
    parts = Parts(
        task=task,
        sampler=sampler,
        engine=core.engine,
        rewards=core.rewards,
        filters=filters,
        shapers=[build.instance(item) for item in run_file.shapers],
        model=core.model,
        strategy=core.strategy,
        advantage=build.function(run_file.advantage),
        objective=objective_of(run_file, build, kl),
        kl=kl,
        correction=build.function(run_file.correction) if run_file.correction else uncorrected,
        selectors=[build.function(item) for item in run_file.selectors],
        needs=core.setup.needs,
        evaluator=build_evaluator(core, run_file),
        trackers=[build.instance(item) for item in run_file.trackers],
        callbacks=[build.instance(item) for item in run_file.callbacks],
        store=RolloutStore(run_dir.rollouts) if run_file.rollouts.save else None,
        checkpoints=Checkpoints(run_dir.checkpoints, run_file.checkpoint.keep, run_file.checkpoint.max_bytes),
        stopper=stopper,
        before_update=before_update(run_file.optim.ptx, core.model, core.strategy, run_file.run.seed),
        gauge=core.strategy.gap if isinstance(core.strategy, GaugingStrategy) else ungauged,
        rest=core.strategy if isinstance(core.strategy, RestingStrategy) else Restless(),
        meter=meter_of(core.strategy),
    )
    plan = Plan(
        run=run_file.run,
        optim=run_file.optim,
        evaluation=run_file.evaluation,
        checkpoint=run_file.checkpoint,
        num_steps=core.num_steps,
        prompts_per_step=core.setup.sampler.prompts_per_step,
        minibatches=core.batch.num_minibatches,
        engine_gap=run_file.engine_gap,
    )
    return Trainer(parts, plan)


def objective_of(run_file: RunFile, build: Builder, kl: KLTerm | None) -> Objective:
    """The loss section as an objective."""
    config = cast(LossSection, run_file.loss.config)
    sampler = cast(SamplerSection, run_file.sampler.config)
    in_loss = kl is not None and kl.in_loss
    promises = "zero_without_advantage" in run_file.loss.component.provides
    return Objective(
        loss=build.function(run_file.loss),
        aggregation=config.aggregation,
        token_budget=float(config.token_budget or sampler.max_new_tokens),
        kl=kl.estimate if kl is not None and in_loss else None,
        entropy_coef=config.entropy_coef,
        zero_without_advantage=promises and not in_loss and config.entropy_coef == 0.0,
    )


def build_evaluator(core: Core, run_file: RunFile) -> Evaluator | None:
    """The evaluator, where the run file names an evaluation task."""
    if core.evaluation_task is None:
        return None
    return evaluator_of(run_file, core.setup, core.engine, core.rewards, core.evaluation_task)


def evaluator_of(run_file: RunFile, setup: Setup, engine: Engine, rewards: RewardSet, task: Task) -> Evaluator:
    """The evaluator of a task, over the ranks of the setup."""
    section, sampler, model = run_file.evaluation, setup.sampler, setup.require_model()
    sampling = Sampling(
        max_new_tokens=section.max_new_tokens or sampler.max_new_tokens,
        temperature=section.temperature,
        top_p=section.top_p,
        stop=sampler.stop,
        stop_token_ids=model.stop_token_ids,
    )
    return Evaluator(
        task=task,
        engine=engine,
        model=model,
        rewards=rewards,
        sampling=sampling,
        num_samples=section.num_samples,
        metric=section.metric,
        seed=run_file.run.seed,
        world=setup.world,
    )


def build_selftest(core: Core, run_file: RunFile) -> SelfTest:
    """The checks of step 0."""
    sampler = core.setup.sampler
    return SelfTest(
        model=core.model,
        strategy=core.strategy,
        loss=core.builder.function(run_file.loss),
        has_reference="ref_logprobs" in core.setup.needs,
        tolerance=run_file.selftest.tolerance,
        is_truncated=sampler.top_p < 1 or sampler.top_k > 0 or sampler.min_p > 0,
    )


def uncorrected(batch: Batch, world: World) -> Corrected:
    """No correction: nothing is weighted, nothing is masked."""
    return Corrected()


def _num_steps(run_file: RunFile, task: Task | None) -> int:
    if run_file.run.steps is not None or task is None:
        return run_file.run.steps or 1
    sampler = cast(SamplerSection, run_file.sampler.config)
    return max(1, math.ceil(run_file.run.episodes * len(task) / sampler.prompts_per_step))


def _required(task: Task | None) -> Task:
    if task is None:
        raise RuntimeError("this core was built without its training task")
    return task
