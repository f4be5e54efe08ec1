"""Batches to test with: ragged rows, a row that trains nothing, a hole in a mask. The one place that imports torch."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from lightrft_core.data import Batch, LossInputs, Tensor
from lightrft_core.testing.results import Skipped

TOLERANCE = 1e-9
NUM_TOKENS = 7
LENGTHS = (7, 4, 1, 5, 5, 6, 3, 2, 6, 7, 4, 5, 3)
GROUPS = (0, 0, 0, 1, 1, 1, 2, 3, 3, 3, 4, 4, 4)
REWARDS = (1.0, 0.0, 0.5, 0.1, 0.1, 0.1, 1.0, 0.25, float("nan"), 2.0, 0.0, 1.0, 1.0)
UNSCORED_ROW, MASKED_ROW, SINGLE_ROW, CONSTANT_ROWS = 8, 11, 6, (3, 4, 5)


def torch_module() -> Any:  # Any: the torch module, which core must not import elsewhere
    """Torch. Raises `Skipped` where it is not installed."""
    try:
        import torch
    except ImportError:
        raise Skipped("torch") from None
    return torch


def mask_of(lengths: Sequence[int], num_tokens: int = NUM_TOKENS) -> Tensor:
    """True at the first so many tokens of each row."""
    torch = torch_module()
    return torch.arange(num_tokens)[None] < torch.tensor(list(lengths))[:, None]


def loss_inputs(seed: int = 0) -> LossInputs:
    """Eight rows in float64 whose ratios lie on both sides of any clip; row 3 trains nothing, row 4 has a hole."""
    torch = torch_module()
    draws = torch.Generator().manual_seed(seed)
    mask_BT = mask_of((7, 4, 1, 0, 5, 6, 3, 7))
    mask_BT[4, 2] = False

    def normal(scale: float = 1.0) -> Tensor:
        return torch.randn(mask_BT.shape, generator=draws, dtype=torch.float64) * scale

    logprobs_BT = -normal().abs() - 0.1
    return LossInputs(
        logprobs_BT=logprobs_BT,
        old_logprobs_BT=logprobs_BT + normal(0.5),
        advantages_BT=normal(),
        mask_BT=mask_BT,
        ref_logprobs_BT=logprobs_BT + normal(0.3),
        entropy_BT=normal().abs(),
    )


def batch(seed: int = 0) -> Batch:
    """Five groups in float64: ragged, equal rewards, one of a single row, one with an unscored row (its reward is
    NaN), one with a row that trains nothing."""
    torch = torch_module()
    draws = torch.Generator().manual_seed(seed)
    lengths = [0 if row == MASKED_ROW else length for row, length in enumerate(LENGTHS)]
    mask_BT = mask_of(lengths)
    mask_BT[9, 3] = False

    def normal(scale: float) -> Tensor:
        return torch.randn(mask_BT.shape, generator=draws, dtype=torch.float64) * scale

    logprobs_BT = -normal(1.0).abs() - 0.1
    return Batch(
        prompt_ids=tuple(f"prompt-{group}" for group in GROUPS),
        prompt_token_ids=tuple((group, 1, 2) for group in GROUPS),
        completion_ids_BT=torch.randint(0, 50, mask_BT.shape, generator=draws),
        mask_BT=mask_BT,
        lengths_B=torch.tensor(LENGTHS),
        group_B=torch.tensor(GROUPS),
        rewards_B=torch.tensor(REWARDS, dtype=torch.float64),
        scored_B=torch.tensor([row != UNSCORED_ROW for row in range(len(GROUPS))]),
        engine_logprobs_BT=logprobs_BT + normal(0.3),
        truncated_B=torch.tensor([length == NUM_TOKENS for length in LENGTHS]),
        old_logprobs_BT=logprobs_BT,
        ref_logprobs_BT=logprobs_BT + normal(0.3),
        entropy_BT=normal(1.0).abs(),
        values_BT=normal(0.5),
    )


def is_padded(name: str, value: object) -> bool:
    """Whether a field is a tensor [B, T]."""
    return name.endswith("_BT") and value is not None


def with_masked(item: Any, value: float) -> Any:  # Any: a Batch or LossInputs, returned as it came
    """A copy in which every masked entry of the real-valued [B, T] tensors is `value`."""
    changed = {
        entry.name: tensor.masked_fill(~item.mask_BT, value)
        for entry in fields(item)
        if is_padded(entry.name, tensor := getattr(item, entry.name)) and tensor.is_floating_point()
    }
    return replace(item, **changed)


def with_padding(item: Any, num: int) -> Any:  # Any: a Batch or LossInputs, returned as it came
    """A copy with `num` more masked tokens on the right; NaN stands in the real-valued ones."""
    torch = torch_module()

    def pad(tensor: Tensor) -> Tensor:
        fill = float("nan") if tensor.is_floating_point() else 0
        return torch.nn.functional.pad(tensor, (0, num), value=fill)

    changed = {
        entry.name: pad(tensor) for entry in fields(item) if is_padded(entry.name, tensor := getattr(item, entry.name))
    }
    return replace(item, **changed)


def select_rows(inputs: LossInputs, rows: Sequence[int]) -> LossInputs:
    """The rows named, in that order."""
    index = list(rows)
    chosen = {entry.name: getattr(inputs, entry.name) for entry in fields(inputs)}
    return LossInputs(**{name: None if value is None else value[index] for name, value in chosen.items()})


def copy_of(item: Any) -> Any:  # Any: a Batch or LossInputs, returned as it came
    """A copy whose tensors are its own."""
    torch = torch_module()
    values = {entry.name: getattr(item, entry.name) for entry in fields(item)}
    return replace(item, **{name: v.clone() for name, v in values.items() if isinstance(v, torch.Tensor)})


def differs(left: Any, right: Any) -> str:  # Any: two Batches or two LossInputs
    """Name of the first field in which two items differ; empty if none does. NaN equals NaN."""
    torch = torch_module()
    for entry in fields(left):
        one, other = getattr(left, entry.name), getattr(right, entry.name)
        if isinstance(one, torch.Tensor) and not torch.equal(one.nan_to_num(nan=1e30), other.nan_to_num(nan=1e30)):
            return entry.name
        if (one is None) != (other is None):
            return entry.name
    return ""


def deviation(left: Tensor, right: Tensor, mask: Tensor | None = None) -> float:
    """Largest absolute difference where `mask` is True; infinite where one is not a number or shapes differ."""
    if left.shape != right.shape:
        return float("inf")
    gap = (left.double() - right.double()).abs().nan_to_num(nan=float("inf"))
    kept = gap if mask is None else gap.masked_fill(~mask, 0.0)
    return float(kept.max()) if kept.numel() else 0.0
