"""A correction: finite weights that are 1 where engine and trainer agree, whatever the order, padding and ranks."""

import math
from dataclasses import replace

from lightrft_core.data import Batch, Tensor
from lightrft_core.protocols import Corrected, SoloWorld, World
from lightrft_core.testing import tensors
from lightrft_core.testing.results import Case, Check, require
from lightrft_core.testing.selector_checks import ORDER, SHARES
from lightrft_core.testing.tensors import TOLERANCE
from lightrft_core.testing.worlds import ToyWorlds


def correct(case: Case, batch: Batch, world: World | None = None) -> tuple[Tensor, Corrected]:
    """What multiplies each token's loss [B, T], 0 where its mask drops it; and the output itself."""
    output: Corrected = case.call(batch, world or SoloWorld())
    weights_BT = output.weights_BT if output.weights_BT is not None else batch.mask_BT.to(batch.rewards_B.dtype)
    mask_BT = batch.mask_BT if output.mask_BT is None else batch.mask_BT & output.mask_BT
    return weights_BT.masked_fill(~mask_BT, 0.0), output


def weights_and_metrics_are_finite(case: Case) -> None:
    """Weights [B, T] of 0 or more, a bool mask, metrics as numbers; also for gaps of +-1000."""
    torch = tensors.torch_module()
    batch = tensors.batch()
    jumps_T = torch.tensor([0.0, 50.0, -50.0, 1000.0, -1000.0, 0.1, 1000.0], dtype=torch.float64)
    for given in (batch, replace(batch, engine_logprobs_BT=batch.old_logprobs_BT - jumps_T)):
        weights_BT, output = correct(case, given)
        require(isinstance(output, Corrected), f"a correction returns Corrected, not {type(output).__name__}")
        shape = tuple(weights_BT.shape)
        require(shape == tuple(batch.mask_BT.shape), f"weights have shape {shape}, expected [B, T]")
        require(bool(torch.isfinite(weights_BT).all()), "weights are not finite")
        require(bool((weights_BT >= 0).all()), "a weight is negative")
        require(output.mask_BT is None or output.mask_BT.dtype == torch.bool, "the mask must be bool")
        bad = [name for name, value in output.metrics.items() if not math.isfinite(value)]
        require(not bad, f"not finite: {', '.join(bad)}")


def no_gap_needs_no_correction(case: Case) -> None:
    """Engine and trainer agree: every weight is 1 and nothing is masked."""
    batch = tensors.batch()
    weights_BT, _ = correct(case, replace(batch, engine_logprobs_BT=batch.old_logprobs_BT))
    gap = tensors.deviation(weights_BT, batch.mask_BT.double())
    require(gap <= TOLERANCE, f"without a gap the weights are off 1 by {gap:.3g}")


def inputs_are_left_alone(case: Case) -> None:
    """Pure: the caller changes the batch, not the correction."""
    batch = tensors.batch()
    before = tensors.copy_of(batch)
    correct(case, batch)
    changed = tensors.differs(batch, before)
    require(not changed, f"{changed} was changed in place")


def order_and_padding_do_not_matter(case: Case) -> None:
    """Shuffled rows; more masked tokens, NaN at all of them."""
    batch = tensors.batch()
    expected_BT, output = correct(case, batch)
    shuffled = tensors.deviation(correct(case, batch.rows(ORDER))[0], expected_BT[ORDER])
    require(shuffled <= TOLERANCE, f"another order of rows changes weights by {shuffled:.3g}")
    padded_BT, other = correct(case, tensors.with_masked(tensors.with_padding(batch, 4), math.nan))
    gap = tensors.deviation(padded_BT[:, :-4], expected_BT)
    require(gap <= TOLERANCE, f"padding or masked tokens change weights by {gap:.3g}")
    _same_metrics(other, output, "padding")


def two_ranks_give_what_one_gives(case: Case) -> None:
    """Rows split over two ranks, and a rank without any; metrics are those of all rows on both."""
    batch = tensors.batch()
    expected_BT, output = correct(case, batch)
    for shares in (SHARES, (list(range(len(batch))), [])):
        found = ToyWorlds(2).split(lambda rows, world: correct(case, batch.rows(rows), world), shares)
        for (part_BT, other), rows in zip(found, shares, strict=True):
            gap = tensors.deviation(part_BT, expected_BT[rows])
            require(gap <= TOLERANCE, f"two ranks change weights by {gap:.3g}")
            _same_metrics(other, output, "two ranks")


def _same_metrics(found: Corrected, expected: Corrected, what: str) -> None:
    for name, value in expected.metrics.items():
        gap = abs(found.metrics.get(name, math.inf) - value)
        require(gap <= TOLERANCE * (1 + abs(value)), f"{what}: the metric {name} changes by {gap:.3g}")


CHECKS: tuple[Check, ...] = (
    weights_and_metrics_are_finite,
    no_gap_needs_no_correction,
    inputs_are_left_alone,
    order_and_padding_do_not_matter,
    two_ranks_give_what_one_gives,
)
