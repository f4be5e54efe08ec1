"""The `single` strategy: the whole model on one device, or a replica per rank with gradients summed.

One optimizer step sums the shares of its micro-batches; `Objective` divides by counts of the whole step over all ranks,
so how rows are cut and where they live cannot change the update. A critic learns in the same steps as the policy.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from lightrft_core.data import Batch, LossInputs, StepStats, seed_for
from lightrft_core.errors import UserError
from lightrft_core.objective import Objective, Totals, local_totals
from lightrft_core.protocols import Layout, LogProbs, Setup, ValueAdapter, World
from torch import Tensor, nn

from lightrft_engines.average import Average
from lightrft_engines.config import SingleConfig
from lightrft_engines.critic import Critic
from lightrft_engines.fingerprint import fingerprint, spread_names
from lightrft_engines.passes import Passes, on_device, required, trained_rows
from lightrft_engines.placement import cast_parameters, choose_device, choose_dtype
from lightrft_engines.reference import Reference
from lightrft_engines.stepsums import StepSums
from lightrft_engines.supervised import Examples
from lightrft_engines.tensors_io import read_tensors, write_tensors
from lightrft_engines.trained import CRITIC, POLICY, TrainedRole
from lightrft_engines.world import TorchWorld, open_world

FORMAT = 1


class SingleStrategy:
    """`protocols.Strategy` on one device per rank."""

    def __init__(self, config: SingleConfig, setup: Setup) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self._config = config
        self._adapter = setup.require_model()
        self._device = choose_device(config.device)
        self._world = setup.world if setup.world.size > 1 else open_world(self._device)
        self._passes = Passes(self._adapter, config, self._device)
        torch.manual_seed(seed_for(setup.run.seed, "torch", self._world.rank))  # for parts that draw without a seed
        frozen, num_steps = _frozen_updates(setup), setup.num_optimizer_steps
        policy = self._placed(self._adapter.load("policy"))
        self._policy = TrainedRole(policy, setup.optim, num_steps - frozen, POLICY, checkpointing=config.checkpointing)
        self._reference = Reference(self._load_reference) if "ref_logprobs" in setup.needs else None
        self._average = Average(self._policy, config.ema_beta) if config.ema else None
        self.critic, self._frozen_updates = self._build_critic(setup), frozen
        self._examples: Examples | None = None
        self._exports_critic = setup.critic is not None and setup.critic.export

    @property
    def world(self) -> World:
        """The ranks of this run."""
        return self._world

    @property
    def is_exact(self) -> bool:
        """Whether parameters, and with them forward passes, are fp32."""
        return next(self.policy.parameters()).dtype in (torch.float32, torch.float64)

    @property
    def policy(self) -> nn.Module:
        """The trained module, for engines that serve it in place."""
        return self._policy.module

    @property
    def device(self) -> torch.device:
        """Where the models live."""
        return self._device

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
        rows = trained_rows(batch)
        if "values" in needs:
            self._require_critic().fill(batch)
        if needs & {"old_logprobs", "entropy"}:
            found = self._without_gradient(batch, rows, "policy", self._passes.layout, "entropy" in needs)
            batch.old_logprobs_BT = found.logprobs_BT if "old_logprobs" in needs else batch.old_logprobs_BT
            batch.entropy_BT = found.entropy_BT if "entropy" in needs else batch.entropy_BT
        if "ref_logprobs" in needs:
            found = self._without_gradient(batch, rows, "reference", self._passes.layout, False)
            batch.ref_logprobs_BT = found.logprobs_BT

    def logprobs(self, batch: Batch, *, role: str = "policy", layout: Layout = "auto") -> LogProbs:
        """Log-probabilities and entropy of all rows without gradient, on the CPU."""
        return self._without_gradient(batch, list(range(len(batch))), role, layout, True)

    def step(self, minibatch: Batch, objective: Objective) -> StepStats:
        """One update of each role over all ranks' rows, or of none; see `protocols.Strategy.step`."""
        totals, is_frozen = self._totals(minibatch), self.is_policy_frozen
        sums = StepSums(totals)
        norms: dict[TrainedRole, float] = {}
        if not is_frozen:
            norms[self._policy] = self._policy_gradient(minibatch, objective, totals, sums)
        if self.critic is not None:
            norms[self.critic.role] = self.critic.gradient(minibatch, totals, sums, self._world)
        lr = 0.0 if is_frozen else self._policy.rate
        self._examples = None
        unsound = [norm for norm in norms.values() if not math.isfinite(norm)]  # one non-finite entry makes it so
        for role, norm in norms.items():
            if not unsound:
                role.apply(norm)
            role.forget()
        if self._average is not None and not is_frozen and not unsound:
            self._average.follow()
        skipped = f"the gradient norm is {unsound[0]}" if unsound else None
        policy_norm = norms.get(self._policy, 0.0)
        return StepStats(metrics=sums.over_ranks(self._world), grad_norm=policy_norm, lr=lr, skipped=skipped)

    def refresh_reference(self) -> None:
        """Make the policy as it is now the reference."""
        if self._reference is None:
            raise ValueError("this run has no reference that could be renewed")
        self._reference.refresh(self.policy)

    def mix_in(self, examples: Batch, coef: float) -> None:
        """The next step learns these examples too."""
        self._examples = Examples(examples, coef)

    def take_average(self) -> None:
        """Make the average of the weights the policy; `UserError` where none is kept."""
        if self._average is None:
            raise UserError("this run kept no average of its weights.", where="strategy.ema", hint="Set it to true.")
        self._average.give()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters by their Hugging Face names, tied ones once."""
        for name, parameter in self.policy.named_parameters():
            yield name, parameter.detach()

    def fingerprint(self, num: int = 8) -> Mapping[str, float]:
        """See `fingerprint.fingerprint`."""
        found = dict(self.policy.named_parameters())
        return {name: fingerprint(name, found[name]) for name in spread_names(list(found), num)}

    def save(self, path: Path) -> None:
        """Rank 0 writes models, moments and counts; every rank its random state."""
        write_tensors(path / f"random-{self._world.rank:05d}.safetensors", {"torch": torch.get_rng_state()})
        if self._world.rank != 0:
            return
        state = {"format": FORMAT, "optimizer_steps": self._policy.steps_done}
        self._policy.save(path)
        if self.critic is not None:
            self.critic.role.save(path)
            state["critic_steps"] = self.critic.role.steps_done
        if self._reference is not None:
            self._reference.save(path)
        if self._average is not None:
            self._average.save(path)
        (path / "strategy.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

    def load(self, path: Path) -> None:
        """Take them back, exactly; `UserError` for another model's checkpoint, with nothing changed."""
        state = json.loads((path / "strategy.json").read_text(encoding="utf-8"))
        policy = self._policy.read(path)
        if self.critic is not None:
            self.critic.role.take(self.critic.role.read(path), int(state["critic_steps"]))
        if self._reference is not None:
            self._reference.load(path)
        if self._average is not None:
            self._average.load(path)
        self._policy.take(policy, int(state["optimizer_steps"]))
        own_random = path / f"random-{self._world.rank:05d}.safetensors"
        if own_random.is_file():
            torch.set_rng_state(read_tensors(own_random, {"torch": torch.get_rng_state()})["torch"])

    def export(self, path: Path) -> None:
        """Rank 0 writes the Hugging Face folder, and the critic where that was asked for; the others wait for it."""
        if self._world.rank == 0:
            self._adapter.export(self.policy, path)
            if self.critic is not None and self._exports_critic:
                self.critic.adapter.export_critic(self.critic.role.module, path / "critic")
        self._world.barrier()

    def close(self) -> None:
        """Leave the process group and drop the models."""
        self._reference = self.critic = None
        if isinstance(self._world, TorchWorld):
            self._world.close()

    def _build_critic(self, setup: Setup) -> Critic | None:
        if setup.critic is None:
            return None
        adapter = cast(ValueAdapter, self._adapter)  # its component provides `values`, or the run file was refused
        module = self._placed(adapter.load_critic(setup.critic))
        has_checkpointing, num_steps = self._config.checkpointing, setup.num_optimizer_steps
        role = TrainedRole(module, setup.critic, num_steps, CRITIC, checkpointing=has_checkpointing)
        return Critic(role, adapter, self._passes, setup.critic.clip)

    def _require_critic(self) -> Critic:
        if self.critic is None:
            raise ValueError("values are needed and this run has no critic: it was built without `setup.critic`")
        return self.critic

    def _load_reference(self) -> nn.Module:
        return self._placed(self._adapter.load("reference"))

    def _placed(self, module: nn.Module) -> nn.Module:
        cast_parameters(module, choose_dtype(self._config.precision, self._device))
        placed: nn.Module = module.to(self._device).eval()
        return placed

    def _totals(self, batch: Batch) -> Totals:
        own = local_totals(batch)
        tokens, sequences = self._world.sum([own.tokens, own.sequences])
        return Totals(tokens, sequences)

    def _policy_gradient(self, minibatch: Batch, objective: Objective, totals: Totals, sums: StepSums) -> float:
        """Gather it over all ranks; returns its norm and adds the step's metrics."""
        trained = trained_rows(minibatch)
        rows = _with_gradient(minibatch, trained, objective)
        sums.add_zero_rows(minibatch, set(trained) - set(rows))
        with self._policy.gathering():
            for part in self._passes.parts(self.policy, minibatch, rows):
                self._backward(minibatch.rows(part), objective, totals, sums)
                self._policy.absorb()
            if self._examples is not None:
                self._examples.backward(self._policy, self._passes, sums, self._world)
        return self._policy.reduce(self._world)

    def _backward(self, part: Batch, objective: Objective, totals: Totals, sums: StepSums) -> None:
        found = self._adapter.logprobs(
            self.policy, part, layout=self._passes.layout, entropy=True, chunk=self._config.logprob_chunk
        )
        part = on_device(part, self._device)
        own_BT = found.logprobs_BT.detach()
        old_BT = own_BT if part.old_logprobs_BT is None else part.old_logprobs_BT
        entropy_BT = found.entropy_BT
        if entropy_BT is not None and not objective.needs_entropy:
            entropy_BT = entropy_BT.detach()
        inputs = LossInputs(
            logprobs_BT=found.logprobs_BT,
            old_logprobs_BT=old_BT,
            advantages_BT=required(part.advantages_BT, "advantages_BT"),
            mask_BT=part.mask_BT,
            ref_logprobs_BT=part.ref_logprobs_BT,
            entropy_BT=entropy_BT,
        )
        share, metrics = objective.share(inputs, totals, part.weights_BT)
        share.backward()
        sums.add(metrics)
        sums.add_gap(part.engine_logprobs_BT, old_BT, part.mask_BT)

    def _without_gradient(self, batch: Batch, rows: list[int], role: str, layout: Layout, entropy: bool) -> LogProbs:
        roles = {"policy": self.policy} | ({} if self._reference is None else {"reference": self._reference.module})
        if role not in roles:
            raise ValueError(f"no role {role!r}; this run has {', '.join(roles)}")
        return self._passes.logprobs(roles[role], batch, rows, layout, entropy)


def _frozen_updates(setup: Setup) -> int:
    """Updates of the critic before the policy's first. `UserError` where they are all that the run has."""
    if setup.critic is None or setup.critic.policy_freeze_steps == 0:
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


def _with_gradient(batch: Batch, rows: list[int], objective: Objective) -> list[int]:
    """Leave out rows whose gradient is promised to be zero."""
    is_alone = objective.kl is None and not objective.needs_entropy
    if not (objective.zero_without_advantage and is_alone) or batch.advantages_BT is None:
        return rows
    has_advantage = ((batch.advantages_BT != 0) & batch.mask_BT).any(-1).tolist()
    return [row for row in rows if has_advantage[row]]
