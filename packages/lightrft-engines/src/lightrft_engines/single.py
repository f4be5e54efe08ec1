"""The `single` strategy: the whole model on one device, or a replica per rank with gradients summed.

One optimizer step sums the shares of its micro-batches; `Objective` divides by counts of the whole step over all ranks,
so how rows are cut and where they live cannot change the update.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path

import torch
from lightrft_core.data import Batch, LossInputs, StepStats, seed_for
from lightrft_core.errors import UserError
from lightrft_core.objective import Objective, Totals, local_totals
from lightrft_core.protocols import Layout, LogProbs, Setup, World
from torch import Tensor, nn

from lightrft_engines.checkpointing import Checkpointing
from lightrft_engines.config import SingleConfig
from lightrft_engines.fingerprint import fingerprint, spread_names
from lightrft_engines.microbatch import Limits, cut_packed, cut_padded
from lightrft_engines.optimizer import Optimizer
from lightrft_engines.placement import cast_parameters, choose_device, choose_dtype, token_limit
from lightrft_engines.schedule import learning_rate
from lightrft_engines.stepsums import StepSums
from lightrft_engines.tensors_io import read_tensors, write_tensors
from lightrft_engines.world import TorchWorld, open_world

FORMAT = 1


class SingleStrategy:
    """`protocols.Strategy` on one device per rank."""

    def __init__(self, config: SingleConfig, setup: Setup) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self._config, self._optim = config, setup.optim
        self._adapter = setup.require_model()
        self._num_steps, self._steps_done = setup.num_optimizer_steps, 0
        self._device = choose_device(config.device)
        self._world = setup.world if setup.world.size > 1 else open_world(self._device)
        torch.manual_seed(seed_for(setup.run.seed, "torch", self._world.rank))  # for parts that draw without a seed
        self._roles = {"policy": self._load("policy")}
        if "ref_logprobs" in setup.needs:
            self._roles["reference"] = self._load("reference").requires_grad_(False)
        self._checkpointing = Checkpointing(self.policy, config.checkpointing)
        self._optimizer = Optimizer(self.policy, setup.optim)

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
        return self._roles["policy"]

    @property
    def device(self) -> torch.device:
        """Where the models live."""
        return self._device

    @property
    def step_rate(self) -> float:
        """The learning rate of the next optimizer step."""
        return learning_rate(self._optim, self._steps_done, self._num_steps)

    def fill(self, batch: Batch, needs: frozenset[str]) -> None:
        """Set `old_logprobs`, `ref_logprobs`, `entropy` of the rows that train; zeros elsewhere."""
        if "values" in needs:
            raise UserError("strategy `single` has no critic.", where="strategy", hint="Choose a critic-free one.")
        rows = _trained_rows(batch)
        if needs & {"old_logprobs", "entropy"}:
            found = self._without_gradient(batch, rows, "policy", self._layout(), "entropy" in needs)
            batch.old_logprobs_BT = found.logprobs_BT if "old_logprobs" in needs else batch.old_logprobs_BT
            batch.entropy_BT = found.entropy_BT if "entropy" in needs else batch.entropy_BT
        if "ref_logprobs" in needs:
            batch.ref_logprobs_BT = self._without_gradient(batch, rows, "reference", self._layout(), False).logprobs_BT

    def logprobs(self, batch: Batch, *, role: str = "policy", layout: Layout = "auto") -> LogProbs:
        """Log-probabilities and entropy of all rows without gradient, on the CPU."""
        return self._without_gradient(batch, list(range(len(batch))), role, layout, True)

    def step(self, minibatch: Batch, objective: Objective) -> StepStats:
        """One optimizer step over all ranks' rows; see `protocols.Strategy.step`."""
        totals = self._totals(minibatch)
        trained = _trained_rows(minibatch)
        rows = _with_gradient(minibatch, trained, objective)
        sums = StepSums(totals)
        sums.add_zero_rows(minibatch, set(trained) - set(rows))
        self._optimizer.begin()
        with self._checkpointing:
            for part in self._cut(self.policy, minibatch, rows, self._layout(), self._limits()):
                self._backward(minibatch.rows(part), objective, totals, sums)
                self._optimizer.absorb()
        norm = self._optimizer.reduce(self._world)
        lr = self.step_rate
        is_finite = math.isfinite(norm)  # one non-finite entry makes the norm so
        if is_finite:
            self._optimizer.apply(lr, norm)
            self._steps_done += 1
        self._optimizer.end()
        skipped = None if is_finite else f"the gradient norm is {norm}"
        return StepStats(metrics=sums.over_ranks(self._world), grad_norm=norm, lr=lr, skipped=skipped)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters by their Hugging Face names, tied ones once."""
        for name, parameter in self.policy.named_parameters():
            yield name, parameter.detach()

    def fingerprint(self, num: int = 8) -> Mapping[str, float]:
        """See `fingerprint.fingerprint`."""
        found = dict(self.policy.named_parameters())
        return {name: fingerprint(name, found[name]) for name in spread_names(list(found), num)}

    def save(self, path: Path) -> None:
        """Rank 0 writes model, moments and counts; every rank its random state."""
        write_tensors(path / f"random-{self._world.rank:05d}.safetensors", {"torch": torch.get_rng_state()})
        if self._world.rank != 0:
            return
        write_tensors(path / "model.safetensors", self._all_weights())
        write_tensors(path / "optimizer.safetensors", self._optimizer.moments())
        state = {"format": FORMAT, "optimizer_steps": self._steps_done}
        (path / "strategy.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

    def load(self, path: Path) -> None:
        """Take them back, exactly; `UserError` for another model's checkpoint, with nothing changed."""
        state = json.loads((path / "strategy.json").read_text(encoding="utf-8"))
        weights = read_tensors(path / "model.safetensors", self._all_weights())
        moments = read_tensors(path / "optimizer.safetensors", self._optimizer.moments())
        self._steps_done = int(state["optimizer_steps"])
        self._optimizer.load_weights(weights)
        self._optimizer.load_moments(moments, self._steps_done)
        own_random = path / f"random-{self._world.rank:05d}.safetensors"
        if own_random.is_file():
            torch.set_rng_state(read_tensors(own_random, {"torch": torch.get_rng_state()})["torch"])

    def export(self, path: Path) -> None:
        """Rank 0 writes the Hugging Face folder; the others wait for it."""
        if self._world.rank == 0:
            self._adapter.export(self.policy, path)
        self._world.barrier()

    def close(self) -> None:
        """Leave the process group and drop the models."""
        self._roles.clear()
        if isinstance(self._world, TorchWorld):
            self._world.close()

    def _load(self, role: str) -> nn.Module:
        module: nn.Module = self._adapter.load(role)
        cast_parameters(module, choose_dtype(self._config.precision, self._device))
        return module.to(self._device).eval()

    def _all_weights(self) -> dict[str, Tensor]:
        """Trained parameters in full precision, frozen ones as they are."""
        return dict(self.policy.named_parameters()) | self._optimizer.weights()

    def _layout(self) -> Layout:
        if self._config.packing == "auto":
            return "auto"
        return "packed" if self._config.packing else "padded"

    def _limits(self) -> Limits:
        tokens = self._config.max_tokens_per_micro_batch
        by_rows = self._config.micro_batch_size is not None and tokens is None
        return Limits(self._config.micro_batch_size, 1 << 60 if by_rows else tokens or token_limit(self._device))

    def _limits_without_gradient(self) -> Limits:
        rows = self._config.logprob_micro_batch_size
        tokens = self._config.max_tokens_per_micro_batch or token_limit(self._device)
        return Limits(rows, 1 << 60 if rows is not None else 2 * tokens)

    def _cut(self, module: nn.Module, batch: Batch, rows: list[int], layout: Layout, limits: Limits) -> list[list[int]]:
        if not rows:
            return []
        is_packed = self._adapter.layout_for(module, batch, layout) == "packed"
        return (cut_packed if is_packed else cut_padded)(batch, rows, limits)

    def _totals(self, batch: Batch) -> Totals:
        own = local_totals(batch)
        tokens, sequences = self._world.sum([own.tokens, own.sequences])
        return Totals(tokens, sequences)

    def _backward(self, part: Batch, objective: Objective, totals: Totals, sums: StepSums) -> None:
        found = self._adapter.logprobs(
            self.policy, part, layout=self._layout(), entropy=True, chunk=self._config.logprob_chunk
        )
        part = _on(part, self._device)
        own_BT = found.logprobs_BT.detach()
        old_BT = own_BT if part.old_logprobs_BT is None else part.old_logprobs_BT
        entropy_BT = found.entropy_BT
        if entropy_BT is not None and not objective.needs_entropy:
            entropy_BT = entropy_BT.detach()
        inputs = LossInputs(
            logprobs_BT=found.logprobs_BT,
            old_logprobs_BT=old_BT,
            advantages_BT=_required(part.advantages_BT, "advantages_BT"),
            mask_BT=part.mask_BT,
            ref_logprobs_BT=part.ref_logprobs_BT,
            entropy_BT=entropy_BT,
        )
        share, metrics = objective.share(inputs, totals, part.weights_BT)
        share.backward()
        sums.add(metrics)
        sums.add_gap(part.engine_logprobs_BT, old_BT, part.mask_BT)

    def _without_gradient(self, batch: Batch, rows: list[int], role: str, layout: Layout, entropy: bool) -> LogProbs:
        if role not in self._roles:
            raise ValueError(f"no role {role!r}; this run has {', '.join(self._roles)}")
        module = self._roles[role]
        logprobs_BT = torch.zeros(batch.mask_BT.shape, dtype=torch.float32)
        entropy_BT = torch.zeros_like(logprobs_BT) if entropy else None
        with torch.no_grad():
            for part in self._cut(module, batch, rows, layout, self._limits_without_gradient()):
                found = self._adapter.logprobs(
                    module, batch.rows(part), layout=layout, entropy=entropy, chunk=self._config.logprob_chunk
                )
                logprobs_BT[part] = found.logprobs_BT.float().cpu()
                if entropy_BT is not None and found.entropy_BT is not None:
                    entropy_BT[part] = found.entropy_BT.float().cpu()
        return LogProbs(logprobs_BT, entropy_BT)


def _trained_rows(batch: Batch) -> list[int]:
    rows: list[int] = batch.mask_BT.any(-1).nonzero().flatten().tolist()
    return rows


def _with_gradient(batch: Batch, rows: list[int], objective: Objective) -> list[int]:
    """Leave out rows whose gradient is promised to be zero."""
    is_alone = objective.kl is None and not objective.needs_entropy
    if not (objective.zero_without_advantage and is_alone) or batch.advantages_BT is None:
        return rows
    has_advantage = ((batch.advantages_BT != 0) & batch.mask_BT).any(-1).tolist()
    return [row for row in rows if has_advantage[row]]


def _on(batch: Batch, device: torch.device) -> Batch:
    tensors = {item.name: getattr(batch, item.name) for item in fields(batch)}
    return replace(batch, **{name: value.to(device) for name, value in tensors.items() if isinstance(value, Tensor)})


def _required(value: Tensor | None, name: str) -> Tensor:
    if value is None:
        raise ValueError(f"the batch has no {name}: compute them before the optimizer step")
    return value
