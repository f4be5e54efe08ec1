"""An advantage: siblings are found by number, nothing depends on order or padding, unscored rows are neutral."""

import math
from collections.abc import Sequence
from dataclasses import replace

from lightrft_core.data import Batch, Tensor
from lightrft_core.protocols import Advantages, SoloWorld, World
from lightrft_core.testing import tensors
from lightrft_core.testing.results import Case, Check, require
from lightrft_core.testing.tensors import TOLERANCE
from lightrft_core.testing.worlds import ToyWorlds


def advantages(case: Case, batch: Batch, world: World | None = None) -> Tensor:
    """The advantages [B, T] of a batch."""
    output: Advantages = case.call(batch, world or SoloWorld())
    return output.advantages_BT


def result_is_per_token(case: Case) -> None:
    """`Advantages` of shape [B, T]; finite where tokens train."""
    torch = tensors.torch_module()
    batch = tensors.batch()
    output = case.call(batch, SoloWorld())
    require(isinstance(output, Advantages), f"an advantage returns Advantages, not {type(output).__name__}")
    for name, values in (("advantages_BT", output.advantages_BT), ("returns_BT", output.returns_BT)):
        if values is None:
            continue
        shape, wanted = tuple(values.shape), tuple(batch.mask_BT.shape)
        require(shape == wanted, f"{name} has shape {shape}, expected {wanted}")
        require(bool(torch.isfinite(values[batch.mask_BT]).all()), f"{name} is not finite at trained tokens")


def inputs_are_left_alone(case: Case) -> None:
    """Pure: the batch is not changed, and a second call gives the same."""
    batch = tensors.batch()
    before = tensors.copy_of(batch)
    first, second = advantages(case, batch), advantages(case, batch)
    changed = tensors.differs(batch, before)
    require(not changed, f"{changed} was changed in place")
    require(tensors.deviation(first, second, batch.mask_BT) == 0.0, "two calls with the same batch differ")


def row_order_does_not_matter(case: Case) -> None:
    """Rows shuffled, so that siblings are no longer adjacent."""
    batch = tensors.batch()
    for order in ([7, 2, 11, 4, 0, 9, 6, 12, 1, 3, 10, 8, 5], list(reversed(range(len(batch))))):
        expected_BT = advantages(case, batch)[order]
        shuffled = batch.rows(order)
        gap = tensors.deviation(advantages(case, shuffled), expected_BT, shuffled.mask_BT)
        require(gap <= TOLERANCE, f"another order of rows changes advantages by {gap:.3g}: use group_B, not positions")


def group_numbers_are_only_names(case: Case) -> None:
    """Groups numbered otherwise are the same groups."""
    batch = tensors.batch()
    renamed = replace(batch, group_B=(batch.group_B * 7 + 3) % 11)
    gap = tensors.deviation(advantages(case, renamed), advantages(case, batch), batch.mask_BT)
    require(gap <= TOLERANCE, f"other group numbers change advantages by {gap:.3g}")


def padding_does_not_matter(case: Case) -> None:
    """More masked tokens, and NaN at all of them."""
    batch = replace(tensors.batch(), token_rewards_BT=tensors.batch(seed=1).values_BT)
    expected_BT = advantages(case, batch)
    for num in (1, 5):
        padded = tensors.with_masked(tensors.with_padding(batch, num), math.nan)
        gap = tensors.deviation(advantages(case, padded)[:, :-num], expected_BT, batch.mask_BT)
        require(gap <= TOLERANCE, f"{num} more tokens of padding change advantages by {gap:.3g}")


def unscored_rows_are_neutral_and_get_0(case: Case) -> None:
    """A row without a score trains nothing and is in no statistic, whatever its reward says."""
    batch = tensors.batch()
    row, others = tensors.UNSCORED_ROW, [row for row in range(len(batch)) if row != tensors.UNSCORED_ROW]
    found_BT = advantages(case, batch)
    own = tensors.deviation(found_BT[row], found_BT[row] * 0.0, batch.mask_BT[row])
    require(own == 0.0, "the unscored row has an advantage other than 0")
    without = batch.rows(others)
    gap = tensors.deviation(found_BT[others], advantages(case, without), without.mask_BT)
    require(gap <= TOLERANCE, f"leaving the unscored row out changes the others by {gap:.3g}")


def equal_rewards_and_single_rows_stay_finite(case: Case) -> None:
    """A batch of nothing but a constant group and a group of one."""
    torch = tensors.torch_module()
    batch = tensors.batch().rows([*tensors.CONSTANT_ROWS, tensors.SINGLE_ROW])
    found_BT = advantages(case, batch)
    require(bool(torch.isfinite(found_BT[batch.mask_BT]).all()), "equal rewards or a group of one give NaN or infinity")


def two_ranks_give_what_one_gives(case: Case) -> None:
    """Groups split over two ranks: whatever is global goes through `world`."""
    _compare_ranks(case, [[3, 4, 5, 7, 8, 9], [0, 1, 2, 6, 10, 11, 12]])


def a_rank_without_rows_is_fine(case: Case) -> None:
    """Filters may leave a rank with nothing."""
    _compare_ranks(case, [list(range(len(tensors.GROUPS))), []])


def _compare_ranks(case: Case, shares: Sequence[list[int]]) -> None:
    batch = tensors.batch()
    expected_BT = advantages(case, batch)
    found = ToyWorlds(2).split(lambda rows, world: advantages(case, batch.rows(rows), world), shares)
    for part_BT, rows in zip(found, shares, strict=True):
        gap = tensors.deviation(part_BT, expected_BT[rows], batch.mask_BT[rows])
        require(gap <= TOLERANCE, f"two ranks change advantages by {gap:.3g}: add statistics up with world.sum")


CHECKS: tuple[Check, ...] = (
    result_is_per_token,
    inputs_are_left_alone,
    row_order_does_not_matter,
    group_numbers_are_only_names,
    padding_does_not_matter,
    unscored_rows_are_neutral_and_get_0,
    equal_rewards_and_single_rows_stay_finite,
    two_ranks_give_what_one_gives,
    a_rank_without_rows_is_fine,
)
