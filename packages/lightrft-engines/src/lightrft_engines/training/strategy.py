"""The one training strategy of this package; how weights are placed is all that its forms differ in.

One optimizer step sums the shares of its micro-batches; `Objective` divides by counts of the whole step over all ranks,
so how rows are cut and where they live cannot change the update. A critic learns in the same steps as the policy.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol, cast

import torch
import torch.distributed as dist
from lightrft_core.abilities import FreezingAdapter, LoraAdapter, SequenceAdapter, SkeletonAdapter, ValueAdapter
from lightrft_core.data import Batch, StepStats, seed_for
from lightrft_core.errors import UserError
from lightrft_core.gap import Gap
from lightrft_core.objective import Objective, Totals, local_totals
from lightrft_core.protocols import Layout, LogProbs, ModelAdapter, Setup, World
from lightrft_core.sections import LearningSection
from torch import Tensor, nn

from lightrft_engines.fingerprint import fingerprint, spread_names
from lightrft_engines.sequence import SequenceRanks
from lightrft_engines.training.actor import Actor
from lightrft_engines.training.adapters import AdapterReference, Lora, lora_source
from lightrft_engines.training.average import Average
from lightrft_engines.training.config import TrainingConfig
from lightrft_engines.training.critic import Critic
from lightrft_engines.training.exchange import Exchange
from lightrft_engines.training.exports import Exports, exporter
from lightrft_engines.training.gapsums import GapSums
from lightrft_engines.training.kept import Holder, Kept
from lightrft_engines.training.passes import Passes, trained_rows
from lightrft_engines.training.placed import Frozen, Source
from lightrft_engines.training.placement import cast_parameters
from lightrft_engines.training.reference import Reference
from lightrft_engines.training.roles import Role
from lightrft_engines.training.stepsums import StepSums
from lightrft_engines.training.supervised import Examples
from lightrft_engines.world import TorchWorld, world_beside


class Backend(Protocol):
    """How modules are placed and learn."""

    @property
    def world(self) -> World:
        """The ranks of this run."""

    @property
    def device(self) -> torch.device:
        """Where the models live."""

    @property
    def dtype(self) -> torch.dtype:
        """What they compute in."""

    @property
    def lockstep(self) -> bool:
        """Whether ranks wait for each other in every pass."""

    @property
    def serves_in_place(self) -> bool:
        """Whether an engine may generate with the policy module itself."""

    def trained(self, source: Source, section: LearningSection, num_steps: int) -> Role:
        """A module that learns, in its place."""

    def frozen(self, source: Source) -> Frozen:
        """A module that does not."""


class TorchStrategy:
    """`protocols.Strategy` on torch.distributed; `tensor_parallel` neighbours of its ranks compute the same rows."""

    def __init__(self, config: TrainingConfig, setup: Setup, backend: Backend, tensor_parallel: int = 1) -> None:
        self._config, self._backend = config, backend
        self._adapter = setup.require_model()
        self._sequence = _sequence_ranks(config, self._adapter, backend.world)
        width = config.sequence_parallel * tensor_parallel
        self._exchange = Exchange(backend.world, backend.device, width=width, balance=config.balance)
        self._passes = Passes(self._adapter, config, backend.device, backend.world, backend.lockstep, self._sequence)
        torch.manual_seed(seed_for(setup.run.seed, "torch", self.world.rank))  # for parts that draw without a seed
        frozen, num_steps = _frozen_updates(setup), setup.num_optimizer_steps
        self._learns, self._written_dtype = setup.learns, backend.dtype
        optim = setup.optim if setup.learns else LearningSection()  # AdamW, which holds nothing before its first step
        source = lora_source(self._adapter, config, whole=backend.serves_in_place)
        self._policy = backend.trained(source or source_of(self._adapter, "policy"), optim, num_steps - frozen)
        self._lora = None if source is None else Lora(self._policy, cast(LoraAdapter, self._adapter), backend.dtype)
        self._passes.prepare(self._policy)
        self._actor = Actor(self._policy, self._passes, self._exchange, backend.world, backend.device)
        self._reference = self._build_reference() if "ref_logprobs" in setup.needs else None
        self._average = Average(self._policy, config.ema_beta) if config.ema else None
        self.critic, self._frozen_updates = self._build_critic(setup), frozen
        self._exports_critic = setup.critic is not None and setup.critic.export

    @property
    def world(self) -> World:
        """The ranks of this run."""
        return self._backend.world

    @property
    def is_exact(self) -> bool:
        """Whether forward passes run in fp32 or better."""
        return self._backend.dtype in (torch.float32, torch.float64)

    @property
    def policy(self) -> nn.Module | None:
        """The trained module, for engines that serve it in place; None where its weights are not all here, plain."""
        return self._policy.module if self._backend.serves_in_place and self._lora is None else None

    @property
    def device(self) -> torch.device:
        """Where the models live."""
        return self._backend.device

    @property
    def step_rate(self) -> float:
        """The learning rate of the policy's next update."""
        return self._policy.rate

    @property
    def is_policy_frozen(self) -> bool:
        """Whether the next step leaves the policy as it is, while its critic warms up."""
        return self.critic is not None and self.critic.role.steps_done < self._frozen_updates

    def fill(self, batch: Batch, needs: frozenset[str]) -> None:
        """Set `old_logprobs`, `ref_logprobs`, `entropy`, `values` of the rows that train; zeros elsewhere."""
        if "values" in needs:
            self._require_critic().fill(batch)
        if not needs & {"old_logprobs", "entropy", "ref_logprobs"}:
            return
        share = self._exchange.share(batch, trained_rows(batch))
        if needs & {"old_logprobs", "entropy"}:
            found = self._passes.logprobs(self._policy, share.batch, self._passes.layout, "entropy" in needs)
            if "old_logprobs" in needs:
                batch.old_logprobs_BT = share.home(found.logprobs_BT)
            if found.entropy_BT is not None:
                batch.entropy_BT = share.home(found.entropy_BT)
        if "ref_logprobs" in needs:
            reference = self._require_reference()
            with reference.awake():
                found = self._passes.logprobs(reference, share.batch, self._passes.layout, False)
            batch.ref_logprobs_BT = share.home(found.logprobs_BT)

    def logprobs(self, batch: Batch, *, role: str = "policy", layout: Layout = "auto") -> LogProbs:
        """Log-probabilities and entropy of all rows without gradient, on the CPU."""
        runners = {"policy": self._policy} | ({} if self._reference is None else {"reference": self._reference})
        if role not in runners:
            raise ValueError(f"no role {role!r}; this run has {', '.join(runners)}")
        share = self._exchange.share(batch, range(len(batch)))
        awake = self._reference.awake() if role == "reference" and self._reference is not None else nullcontext()
        with awake:
            found = self._passes.logprobs(runners[role], share.batch, layout, True)
        entropy_BT = None if found.entropy_BT is None else share.home(found.entropy_BT)
        return LogProbs(share.home(found.logprobs_BT), entropy_BT)

    def step(self, minibatch: Batch, objective: Objective) -> StepStats:
        """One update of each role over all ranks' rows, or of none; see `protocols.Strategy.step`."""
        totals, is_frozen = self._totals(minibatch), self.is_policy_frozen
        sums = StepSums(totals)
        norms: dict[Role, float] = {}
        if not is_frozen:
            norms[self._policy] = self._actor.gradient(minibatch, objective, totals, sums)
        if self.critic is not None:
            norms[self.critic.role] = self.critic.gradient(minibatch, totals, sums, self.world)
        lr = 0.0 if is_frozen else self._policy.rate
        self._actor.examples = None
        unsound = {role: norm for role, norm in norms.items() if not math.isfinite(norm)}  # one entry makes it so
        gap = sums.gap.over_ranks(self.world)
        skipped = f"the gradient norm is {next(iter(unsound.values()))}" if unsound else _too_wide(gap, objective)
        for role, norm in norms.items():
            if skipped is None:
                role.apply(norm)
            role.forget()
        if self._average is not None and not is_frozen and skipped is None:
            self._average.follow()
        return StepStats(
            metrics=sums.over_ranks(self.world),
            grad_norm=norms.get(self._policy, 0.0),
            lr=lr,
            skipped=skipped,
            rescaled=bool(unsound) and all(role.scale is not None and role.scale.was_lowered for role in unsound),
            gap=gap,
        )

    def gap(self, batch: Batch) -> Gap | None:
        """See `abilities.GaugingStrategy`."""
        if batch.old_logprobs_BT is None:
            return None
        sums = GapSums()
        sums.add(batch.engine_logprobs_BT, batch.old_logprobs_BT, batch.mask_BT)
        return sums.over_ranks(self.world)

    def sleep(self) -> None:
        """See `abilities.RestingStrategy`."""
        for role in self._roles.values():
            role.sleep()

    def wake(self) -> None:
        """Be ready for updates."""
        for role in self._roles.values():
            role.wake()

    def peak_bytes(self) -> float | None:
        """Of torch's allocator on a GPU; what engines take beside it is not counted."""
        if self.device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return float(peak)

    def refresh_reference(self) -> None:
        """Make the policy as it is now the reference."""
        self._require_reference().refresh()

    def mix_in(self, examples: Batch, coef: float) -> None:
        """The next step learns these examples too."""
        self._actor.examples = Examples(examples, coef)

    def take_average(self) -> None:
        """Make the average of the weights the policy; `UserError` where none is kept."""
        if self._average is None:
            raise UserError("this run kept no average of its weights.", where="strategy.ema", hint="Set it to true.")
        self._average.give()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Whole parameters by their Hugging Face names, tied ones once; all ranks iterate together."""
        return self._served.served()

    def fingerprint(self, num: int = 8) -> Mapping[str, float]:
        """See `fingerprint.fingerprint`."""
        chosen = spread_names(self._served.names(), num)
        return {name: fingerprint(name, self._served.whole(name)) for name in chosen}

    def save(self, path: Path) -> None:
        """Every rank writes its random state and its shards; rank 0 what all ranks have whole, and the counts."""
        self._kept().snapshot(copied=False).write(path, self.world)

    @cached_property
    def beside(self) -> World:
        """See `abilities.StagingStrategy`."""
        return world_beside(self.world)

    def stage(self, *, export: str | None = None, state: bool = True) -> Callable[[Path], None]:
        """See `abilities.StagingStrategy`."""
        write = self._exporter(copied=True) if export is not None else None
        more = None if write is None else lambda path: write(path / str(export))
        if not state:
            return more if more is not None and self.world.rank == 0 else lambda path: None
        return partial(self._kept().snapshot(copied=True, more=more).write, world=self.beside)

    def load(self, path: Path) -> None:
        """Take it back, exactly, on any number of ranks; `UserError` for another model's, with nothing changed."""
        self._written_dtype = self._kept().load(path, learns=self._learns)

    def export(self, path: Path) -> None:
        """Rank 0 writes the Hugging Face folder, and the critic where that was asked for.

        In the numbers that the model computed with where it was trained.
        """
        write = self._exporter(copied=False)
        if self.world.rank == 0:
            write(path)

    def export_adapters(self, path: Path) -> None:
        """See `abilities.LoraStrategy`."""
        if self._lora is None:
            raise UserError("this run trains all weights.", where="model.lora", hint="Export the model itself.")
        self._lora.export_adapters(path, writes=self.world.rank == 0)

    def close(self) -> None:
        """Leave the process group and drop the models."""
        self._reference = self.critic = None
        if isinstance(self.world, TorchWorld):
            self.world.close()

    @property
    def _roles(self) -> dict[str, Role]:
        return {"policy": self._policy} | ({} if self.critic is None else {"critic": self.critic.role})

    def _kept(self) -> Kept:
        base = None if self._lora is None else self._lora.base
        others: tuple[Holder | None, ...] = (base, self._reference, self._average)
        holders = [holder for holder in others if holder is not None]
        return Kept(self._roles, holders, self.world, self.device, self._backend.dtype)

    def _exporter(self, *, copied: bool) -> Callable[[Path], None]:
        """What writes the export on rank 0; all ranks call it together."""
        exports: Exports = {"": (self._served, self._adapter.export)}
        if self.critic is not None and self._exports_critic:
            exports = {**exports, "critic": (self.critic.role, self.critic.adapter.export_critic)}
        for role, _ in exports.values() if not self._learns else ():
            cast_parameters(role.module, self._written_dtype)
        if self._lora is not None:
            self._lora.dtype = self._written_dtype
        in_place = self._backend.serves_in_place and self._lora is None and not copied
        return exporter(exports, in_place=in_place, copied=copied, writes=self.world.rank == 0)

    @property
    def _served(self) -> Role | Lora:
        return self._policy if self._lora is None else self._lora

    def _build_reference(self) -> Reference | AdapterReference:
        return Reference(self._place_reference, self._policy.served) if self._lora is None else self._lora.reference()

    def _build_critic(self, setup: Setup) -> Critic | None:
        if setup.critic is None:
            return None
        adapter, section = cast(ValueAdapter, self._adapter), setup.critic  # it provides `values`, or was refused
        source = Source(lambda: adapter.load_critic(section))
        role = self._backend.trained(source, section if self._learns else LearningSection(), setup.num_optimizer_steps)
        return Critic(role, adapter, self._passes, self._exchange, section.clip)

    def _require_critic(self) -> Critic:
        if self.critic is None:
            raise ValueError("values are needed and this run has no critic: it was built without `setup.critic`")
        return self.critic

    def _require_reference(self) -> Reference | AdapterReference:
        if self._reference is None:
            raise ValueError("this run has no reference")
        return self._reference

    def _place_reference(self) -> Frozen:
        placed = self._backend.frozen(source_of(self._adapter, "reference"))
        self._passes.prepare(placed)
        return placed

    def _totals(self, batch: Batch) -> Totals:
        own = local_totals(batch)
        tokens, sequences = self.world.sum([own.tokens, own.sequences])
        return Totals(tokens, sequences)


def _too_wide(gap: Gap | None, objective: Objective) -> str | None:
    """Why the update is left out, where the engine is too far off."""
    if gap is None or objective.max_gap is None or gap.mean <= objective.max_gap:
        return None
    return f"the gap between engine and trainer is {gap.mean:.3g} nats per token"


def source_of(adapter: ModelAdapter, role: str) -> Source:
    """How to get a role's module."""
    skeleton = adapter.skeleton if isinstance(adapter, SkeletonAdapter) else None
    is_marked = role == "policy" and isinstance(adapter, FreezingAdapter) and adapter.freezes
    return Source(lambda: adapter.load(role), None if skeleton is None else lambda: skeleton(role), marked=is_marked)


def _sequence_ranks(config: TrainingConfig, adapter: ModelAdapter, world: World) -> SequenceRanks | None:
    """The ranks that share this one's sequences; `UserError` where they cannot."""
    size = config.sequence_parallel
    if size == 1:
        return None
    if world.size % size:
        raise UserError(
            f"{size} ranks cannot share each sequence: it does not divide the {world.size} ranks of this run.",
            where="strategy.sequence_parallel",
            hint=f"Choose a divisor of {world.size}.",
        )
    if not isinstance(adapter, SequenceAdapter):
        raise UserError(
            "this model adapter cannot split sequences over ranks.",
            where="strategy.sequence_parallel",
            hint="Set it to 1, or choose an adapter that can: `lightrft plugins list`.",
        )
    adapter.require_sequence_ranks(size)
    groups = [dist.new_group(list(range(first, first + size))) for first in range(0, world.size, size)]
    return SequenceRanks(groups[world.rank // size], world.rank % size, size)


def _frozen_updates(setup: Setup) -> int:
    """Updates of the critic before the policy's first. `UserError` where they are all that the run has."""
    if setup.critic is None or setup.critic.policy_freeze_steps == 0 or not setup.learns:
        return 0
    num_rollout_steps = setup.run.steps or setup.num_optimizer_steps
    frozen = setup.critic.policy_freeze_steps
    if frozen >= num_rollout_steps:
        raise UserError(
            f"{frozen} is not less than the run's {num_rollout_steps} steps: the policy would never learn.",
            where="critic.policy_freeze_steps",
            hint="Set it lower.",
        )
    return frozen * setup.num_optimizer_steps // num_rollout_steps
