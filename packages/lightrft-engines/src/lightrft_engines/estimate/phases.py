"""The memory of one rank in each phase of a step: roles at rest, and the worst moment of what the phase computes."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace

from lightrft_core.data import Sampling

from lightrft_engines.embedded_config import EmbeddedConfig
from lightrft_engines.estimate.blueprints import Blueprint, blueprints
from lightrft_engines.estimate.case import Case
from lightrft_engines.estimate.census import Census
from lightrft_engines.estimate.engines import Engine, engine_of
from lightrft_engines.estimate.holdings import FULL, Ground
from lightrft_engines.estimate.memory import Memory, worst
from lightrft_engines.estimate.strategies import holdings_of
from lightrft_engines.estimate.tracer import Tracer, Training
from lightrft_engines.estimate.work import Rows
from lightrft_engines.training.config import PlacedConfig

Known = dict[Hashable, object]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Memory by phase, and the passes of an optimizer step on one rank."""

    case: Case
    census: Census
    training: Training
    phases: Mapping[str, Memory]
    note: str

    @property
    def peak_phase(self) -> str:
        """The one that needs most."""
        return max(self.phases, key=lambda name: self.phases[name].total)

    @property
    def peak(self) -> Memory:
        """What it needs."""
        return self.phases[self.peak_phase]

    @property
    def fits(self) -> bool | None:
        """Whether it fits, with a part of the memory left free; None where no limit is known."""
        usable = self.case.target.usable
        return None if usable is None else self.peak.total <= usable


def estimate(case: Case, known: Known) -> Estimate:
    """By phase, in the order of a step; traces are kept in `known`. `UserError` where the run could not start so."""
    return _Estimator(case, known).estimate()


class _Estimator:
    def __init__(self, case: Case, known: Known) -> None:
        self._case, self._modules = case, blueprints(case.setup, case.tensor_parallel)
        ground = Ground(case.target.ranks, case.dtype.itemsize, case.target.is_gpu)
        self._holdings = holdings_of(case.config, ground)
        self._tracer = Tracer(case, self._modules.plain, known)
        self._policy = self._tracer.census(self._modules.policy)
        self._critic = None if self._modules.critic is None else self._tracer.census(self._modules.critic)

    def estimate(self) -> Estimate:
        """All phases."""
        rest, engine = self._rest(), self._engine
        calm, asleep = self._without_state(rest), rest + engine.asleep
        phases = {name: calm + engine.awake + moment for name, moment in self._decoding()}
        phases["prepare"] = calm + engine.asleep + worst(self._prepare())
        phases["train"] = asleep + worst(self._train())
        phases["update"] = asleep + self._update()
        phases["sync"] = calm + engine.sync + self._sync()
        training = self._tracer.training(self._modules.policy)
        return Estimate(self._case, self._policy, training, phases, engine.note)

    def _rest(self) -> Memory:
        """Between phases: every role, the average, libraries."""
        run, config, holdings = self._case.run_file, self._case.config, self._holdings
        rest = Memory(overhead=self._case.target.overhead) + holdings.resting(self._policy, run.optim)
        if self._modules.reference is not None:
            census = self._tracer.census(self._modules.reference)
            rest += holdings.resting(census, None, asleep=config.reference_offload)
        if self._critic is not None:
            rest += holdings.resting(self._critic, run.critic)
        if config.ema:
            rest += Memory(weights=FULL * holdings.learned(self._policy))
        return rest

    def _without_state(self, rest: Memory) -> Memory:
        """Between updates, where optimizer state is on the CPU then."""
        config = self._case.config
        if not (isinstance(config, PlacedConfig) and config.optimizer_offload):
            return rest
        return replace(rest, optimizer=0, host=rest.host + rest.optimizer)

    def _decoding(self) -> Iterator[tuple[str, Memory]]:
        """Held-out prompts and those that train; what an engine of another kind computes is in its own share."""
        sampler, section, held_out = self._case.sampler, self._case.run_file.evaluation, self._case.held_out
        if held_out is not None:
            sampling = Sampling(held_out.completion_tokens, section.temperature, section.top_p)
            yield "evaluate", self._written(held_out, sampling)
        sampling = Sampling(sampler.max_new_tokens, sampler.temperature, sampler.top_p, sampler.top_k, sampler.min_p)
        yield "generate", self._written(self._case.drawn, sampling)

    def _written(self, rows: Rows, sampling: Sampling) -> Memory:
        config = self._case.run_file.engine.config
        return self._tracer.decoding(rows, sampling, config) if isinstance(config, EmbeddedConfig) else Memory()

    def _prepare(self) -> Iterator[Memory]:
        """Passes without gradient, one role after the other."""
        needs, modules = self._case.setup.needs, self._modules
        if needs & {"old_logprobs", "entropy"} or ("ref_logprobs" in needs and modules.reference is None):
            yield from self._scoring(modules.policy, self._policy)
        if modules.reference is not None:
            census = self._tracer.census(modules.reference)
            woken = self._holdings.woken(census) if self._case.config.reference_offload else Memory()
            for moment in self._scoring(modules.reference, census):
                yield moment + woken
        if modules.critic is not None and self._critic is not None:
            yield from self._scoring(modules.critic, self._critic, values=True)

    def _train(self) -> Iterator[Memory]:
        """Passes with gradient; the critic's while the policy's gradients wait for the update."""
        if self._case.batch.optimizer_steps_per_rollout > 1:  # the later ones need log-probabilities from before
            yield from self._scoring(self._modules.policy, self._policy)
        training = self._tracer.training(self._modules.policy)
        yield from self._holdings.training(self._policy, training.course, training.num_passes)
        if self._modules.critic is not None and self._critic is not None:
            waiting = self._holdings.updating(self._policy)
            training = self._tracer.training(self._modules.critic, values=True)
            for moment in self._holdings.training(self._critic, training.course, training.num_passes):
                yield moment + waiting

    def _update(self) -> Memory:
        """The gradients of all that learns."""
        own = self._holdings.updating(self._policy)
        return own if self._critic is None else own + self._holdings.updating(self._critic)

    def _sync(self) -> Memory:
        """Nothing where the engine has the policy itself."""
        return Memory() if self._serves_in_place else self._holdings.serving(self._policy)

    @property
    def _engine(self) -> Engine:
        plain = self._tracer.census(self._modules.plain)
        config, element = self._case.run_file.engine.config, self._case.dtype.itemsize
        return engine_of(config, plain, element, self._case.target, in_place=self._serves_in_place)

    def _scoring(self, blueprint: Blueprint, census: Census, *, values: bool = False) -> Iterator[Memory]:
        yield from self._holdings.scoring(census, self._tracer.scoring(blueprint, values=values))

    @property
    def _serves_in_place(self) -> bool:
        is_embedded = isinstance(self._case.run_file.engine.config, EmbeddedConfig)
        return is_embedded and self._holdings.serves_in_place and not self._modules.has_adapters
