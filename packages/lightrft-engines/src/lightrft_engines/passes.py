"""How a batch goes through a module: cut into parts that fit, with or without gradient. The cut changes no result."""

from dataclasses import dataclass, fields, replace

import torch
from lightrft_core.data import Batch
from lightrft_core.protocols import Layout, LogProbs, ModelAdapter, ValueAdapter
from torch import Tensor, nn

from lightrft_engines.config import SingleConfig
from lightrft_engines.microbatch import Limits, cut_packed, cut_padded
from lightrft_engines.placement import token_limit


@dataclass(frozen=True)
class Passes:
    """The limits of a pass, and the passes without gradient."""

    adapter: ModelAdapter
    config: SingleConfig
    device: torch.device

    @property
    def layout(self) -> Layout:
        """The layout that the run trains in."""
        if self.config.packing == "auto":
            return "auto"
        return "packed" if self.config.packing else "padded"

    def parts(self, module: nn.Module, batch: Batch, rows: list[int]) -> list[list[int]]:
        """Rows of each forward and backward pass."""
        tokens = self.config.max_tokens_per_micro_batch
        by_rows = self.config.micro_batch_size is not None and tokens is None
        limits = Limits(self.config.micro_batch_size, 1 << 60 if by_rows else tokens or token_limit(self.device))
        return self._cut(module, batch, rows, self.layout, limits)

    def logprobs(self, module: nn.Module, batch: Batch, rows: list[int], layout: Layout, entropy: bool) -> LogProbs:
        """Log-probabilities, and the entropy where asked for, without gradient, on the CPU; other rows are 0."""
        logprobs_BT = torch.zeros(batch.mask_BT.shape, dtype=torch.float32)
        entropy_BT = torch.zeros_like(logprobs_BT) if entropy else None
        with torch.no_grad():
            for part in self._parts_without_gradient(module, batch, rows, layout):
                found = self.adapter.logprobs(
                    module, batch.rows(part), layout=layout, entropy=entropy, chunk=self.config.logprob_chunk
                )
                logprobs_BT[part] = found.logprobs_BT.float().cpu()
                if entropy_BT is not None and found.entropy_BT is not None:
                    entropy_BT[part] = found.entropy_BT.float().cpu()
        return LogProbs(logprobs_BT, entropy_BT)

    def values(self, adapter: ValueAdapter, critic: nn.Module, batch: Batch, rows: list[int]) -> Tensor:
        """Values without gradient, on the CPU; other rows are 0."""
        values_BT = torch.zeros(batch.mask_BT.shape, dtype=torch.float32)
        with torch.no_grad():
            for part in self._parts_without_gradient(critic, batch, rows, self.layout):
                values_BT[part] = adapter.values(critic, batch.rows(part), layout=self.layout).float().cpu()
        return values_BT

    def _parts_without_gradient(
        self, module: nn.Module, batch: Batch, rows: list[int], layout: Layout
    ) -> list[list[int]]:
        num_rows = self.config.logprob_micro_batch_size
        tokens = self.config.max_tokens_per_micro_batch or token_limit(self.device)
        return self._cut(module, batch, rows, layout, Limits(num_rows, 1 << 60 if num_rows is not None else 2 * tokens))

    def _cut(self, module: nn.Module, batch: Batch, rows: list[int], layout: Layout, limits: Limits) -> list[list[int]]:
        if not rows:
            return []
        is_packed = self.adapter.layout_for(module, batch, layout) == "packed"
        return (cut_packed if is_packed else cut_padded)(batch, rows, limits)


def trained_rows(batch: Batch) -> list[int]:
    """Rows with at least one token that trains."""
    rows: list[int] = batch.mask_BT.any(-1).nonzero().flatten().tolist()
    return rows


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors there."""
    tensors = {item.name: getattr(batch, item.name) for item in fields(batch)}
    return replace(batch, **{name: value.to(device) for name, value in tensors.items() if isinstance(value, Tensor)})


def required(value: Tensor | None, name: str) -> Tensor:
    """A field of a batch; `ValueError` where it was not computed."""
    if value is None:
        raise ValueError(f"the batch has no {name}: compute them before the optimizer step")
    return value
