"""How a batch goes through a module: cut into parts that fit, with or without gradient. The cut changes no result.

Where ranks wait for each other in every pass (sharded weights), all of them make as many passes: those with less to do
add passes over one spare row whose values nobody reads.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar, cast

import torch
from lightrft_core.abilities import LossAdapter, SequenceAdapter, Share, ValueAdapter
from lightrft_core.data import Batch
from lightrft_core.protocols import Layout, LogProbs, ModelAdapter, World
from torch import Tensor, nn

from lightrft_engines.sequence import SequenceRanks
from lightrft_engines.training.config import TrainingConfig
from lightrft_engines.training.microbatch import Limits, cut_packed, cut_padded
from lightrft_engines.training.placement import token_limit

Result = TypeVar("Result")


class Runner(Protocol):
    """A module that may be sharded, and the one way to compute with it."""

    @property
    def module(self) -> nn.Module:
        """The module itself; outside `run` its parameters may be shards."""

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:  # Any: the function's own
        """`function(module, *arguments)` with whole parameters; it returns tensors, or a tuple of them and None."""


@dataclass(frozen=True)
class Passes:
    """The limits of a pass, and the passes without gradient. `lockstep` ranks make as many passes as each other."""

    adapter: ModelAdapter
    config: TrainingConfig
    device: torch.device
    world: World
    lockstep: bool = False
    sequence: SequenceRanks | None = None

    @property
    def layout(self) -> Layout:
        """The layout that the run trains in."""
        if self.config.packing == "auto":
            return "auto"
        return "packed" if self.config.packing else "padded"

    def prepare(self, runner: Runner) -> None:
        """Let the adapter find out what the module can do, while its parameters are whole."""
        if self.lockstep:
            with torch.no_grad():
                runner.run(self._find_out, spare_row())

    @property
    def training_limits(self) -> Limits:
        """The largest forward and backward pass."""
        tokens = self.config.max_tokens_per_micro_batch
        by_rows = self.config.micro_batch_size is not None and tokens is None
        return Limits(self.config.micro_batch_size, 1 << 60 if by_rows else tokens or token_limit(self.device))

    @property
    def scoring_limits(self) -> Limits:
        """The largest pass without gradient."""
        num_rows = self.config.logprob_micro_batch_size
        tokens = self.config.max_tokens_per_micro_batch or token_limit(self.device)
        return Limits(num_rows, 1 << 60 if num_rows is not None else 2 * tokens)

    def parts(self, module: nn.Module, batch: Batch) -> list[Batch]:
        """The batch as forward and backward passes."""
        return [batch.rows(rows) for rows in self._cut(module, batch, self.layout, self.training_limits)]

    def num_passes(self, own: int) -> int:
        """How many passes all ranks make; each calls it where it knows its own.

        At least one: where no row is left, a spare one makes the gradient a zero.
        """
        return max(1, *(int(num) for num in self.world.gather(own))) if self.lockstep else own

    def forward(self, runner: Runner, part: Batch, *, layout: Layout, entropy: bool = False) -> LogProbs:
        """Log-probabilities of one part; with gradient where that is enabled."""
        logprobs_BT, entropy_BT = runner.run(self._logprobs, part, layout, entropy)
        return LogProbs(logprobs_BT, entropy_BT)

    def loss(self, runner: Runner, part: Batch, share: Share, *, entropy: bool = False) -> Tensor:
        """The sum of `share` over the rows of one part, with gradient; see `abilities.LossAdapter.loss`."""
        found: Tensor = runner.run(self._loss, part, share, entropy)
        return found

    def forward_values(self, runner: Runner, adapter: ValueAdapter, part: Batch) -> Tensor:
        """Values of one part."""
        found: Tensor = runner.run(self._values, adapter, part)
        return found

    def logprobs(self, runner: Runner, batch: Batch, layout: Layout, entropy: bool) -> LogProbs:
        """Log-probabilities, and the entropy where asked for, of all rows, without gradient, on the CPU."""
        logprobs_BT = torch.zeros(batch.mask_BT.shape, dtype=torch.float32)
        entropy_BT = torch.zeros_like(logprobs_BT) if entropy else None
        with torch.no_grad():
            for rows in self._without_gradient(runner.module, batch, layout):
                found = self.forward(runner, rows_or_spare(batch, rows), layout=layout, entropy=entropy)
                if rows:
                    logprobs_BT[rows] = found.logprobs_BT.float().cpu()
                if rows and entropy_BT is not None and found.entropy_BT is not None:
                    entropy_BT[rows] = found.entropy_BT.float().cpu()
        return LogProbs(logprobs_BT, entropy_BT)

    def values(self, runner: Runner, adapter: ValueAdapter, batch: Batch) -> Tensor:
        """Values of all rows, without gradient, on the CPU."""
        values_BT = torch.zeros(batch.mask_BT.shape, dtype=torch.float32)
        with torch.no_grad():
            for rows in self._without_gradient(runner.module, batch, self.layout):
                found_BT = self.forward_values(runner, adapter, rows_or_spare(batch, rows))
                if rows:
                    values_BT[rows] = found_BT.float().cpu()
        return values_BT

    def _logprobs(self, module: nn.Module, part: Batch, layout: Layout, entropy: bool) -> tuple[Tensor, Tensor | None]:
        chunk = self.config.logprob_chunk
        if self.sequence is not None and layout != "padded" and isinstance(self.adapter, SequenceAdapter):
            found = self.adapter.logprobs(
                module, part, layout=layout, entropy=entropy, chunk=chunk, ranks=self.sequence
            )
        else:
            found = self.adapter.logprobs(module, part, layout=layout, entropy=entropy, chunk=chunk)
        return found.logprobs_BT, found.entropy_BT

    def _loss(self, module: nn.Module, part: Batch, share: Share, entropy: bool) -> Tensor:
        if self.sequence is None and isinstance(self.adapter, LossAdapter):
            return cast(
                Tensor,
                self.adapter.loss(
                    module, part, share, layout=self.layout, entropy=entropy, chunk=self.config.logprob_chunk
                ),
            )
        return cast(Tensor, share(range(len(part)), LogProbs(*self._logprobs(module, part, self.layout, entropy))))

    def _values(self, module: nn.Module, adapter: ValueAdapter, part: Batch) -> Tensor:
        if self.sequence is not None and isinstance(adapter, SequenceAdapter):
            return adapter.values(module, part, layout=self.layout, ranks=self.sequence)
        return adapter.values(module, part, layout=self.layout)

    def _find_out(self, module: nn.Module, spare: Batch) -> Tensor:
        self.adapter.layout_for(module, spare, "auto")
        return torch.zeros(())

    def _without_gradient(self, module: nn.Module, batch: Batch, layout: Layout) -> list[list[int]]:
        parts = self._cut(module, batch, layout, self.scoring_limits)
        return parts + [[]] * (self.num_passes(len(parts)) - len(parts))

    def _cut(self, module: nn.Module, batch: Batch, layout: Layout, limits: Limits) -> list[list[int]]:
        rows = list(range(len(batch)))
        if not rows:
            return []
        is_packed = self.adapter.layout_for(module, batch, layout) == "packed"
        return (cut_packed if is_packed else cut_padded)(batch, rows, limits)


def trained_rows(batch: Batch) -> list[int]:
    """Rows with at least one token that trains."""
    rows: list[int] = batch.mask_BT.any(-1).nonzero().flatten().tolist()
    return rows


def rows_or_spare(batch: Batch, rows: list[int]) -> Batch:
    """These rows; where there are none, a spare one."""
    return batch.rows(rows) if rows else spare_row(batch.temperature)


def spare_row(temperature: float = 1.0) -> Batch:
    """One row of one token after one token, for a pass that is made for company."""
    zeros = torch.zeros(1, 1)
    return Batch(
        prompt_ids=("",),
        prompt_token_ids=((0,),),
        completion_ids_BT=zeros.long(),
        mask_BT=torch.ones(1, 1, dtype=torch.bool),
        lengths_B=torch.ones(1, dtype=torch.long),
        group_B=torch.zeros(1, dtype=torch.long),
        rewards_B=zeros[0],
        scored_B=torch.ones(1, dtype=torch.bool),
        engine_logprobs_BT=zeros,
        temperature=temperature,
    )


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors there."""
    tensors = {item.name: getattr(batch, item.name) for item in fields(batch)}
    return replace(batch, **{name: value.to(device) for name, value in tensors.items() if isinstance(value, Tensor)})


def required(value: Tensor | None, name: str) -> Tensor:
    """A field of a batch; `ValueError` where it was not computed."""
    if value is None:
        raise ValueError(f"the batch has no {name}: compute them before the optimizer step")
    return value
