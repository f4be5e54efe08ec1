"""A selector: a mask of the tokens that train, the same whatever the order, the padding and the number of ranks."""

import math

from lightrft_core.data import Batch, Tensor
from lightrft_core.protocols import SoloWorld, World
from lightrft_core.testing import tensors
from lightrft_core.testing.results import Case, Check, require
from lightrft_core.testing.worlds import ToyWorlds

ORDER = [7, 2, 11, 4, 0, 9, 6, 12, 1, 3, 10, 8, 5]
SHARES = ([3, 4, 5, 7, 8, 9], [0, 1, 2, 6, 10, 11, 12])


def chosen(case: Case, batch: Batch, world: World | None = None) -> Tensor:
    """The tokens [B, T] that would train."""
    return case.call(batch, world or SoloWorld()) & batch.mask_BT


def result_is_a_bool_mask(case: Case) -> None:
    """[B, T], bool."""
    torch = tensors.torch_module()
    batch = tensors.batch()
    mask_BT = case.call(batch, SoloWorld())
    require(mask_BT.dtype == torch.bool, f"the mask is {mask_BT.dtype}, expected torch.bool")
    require(mask_BT.shape == batch.mask_BT.shape, f"the mask has shape {tuple(mask_BT.shape)}, expected [B, T]")


def inputs_are_left_alone(case: Case) -> None:
    """Pure: the batch is not changed, and a second call gives the same."""
    batch = tensors.batch()
    before = tensors.copy_of(batch)
    first, second = chosen(case, batch), chosen(case, batch)
    changed = tensors.differs(batch, before)
    require(not changed, f"{changed} was changed in place")
    require(bool((first == second).all()), "two calls with the same batch differ")


def order_and_padding_do_not_matter(case: Case) -> None:
    """Shuffled rows; more masked tokens, NaN at all of them."""
    batch = tensors.batch()
    expected_BT = chosen(case, batch)
    require(bool((chosen(case, batch.rows(ORDER)) == expected_BT[ORDER]).all()), "another order of rows matters")
    padded = tensors.with_masked(tensors.with_padding(batch, 4), math.nan)
    require(bool((chosen(case, padded)[:, :-4] == expected_BT).all()), "padding or masked tokens matter")


def two_ranks_choose_what_one_chooses(case: Case) -> None:
    """Rows split over two ranks, and a rank without any."""
    batch = tensors.batch()
    expected_BT = chosen(case, batch)
    for shares in (SHARES, (list(range(len(batch))), [])):
        found = ToyWorlds(2).split(lambda rows, world: chosen(case, batch.rows(rows), world), shares)
        for part_BT, rows in zip(found, shares, strict=True):
            require(bool((part_BT == expected_BT[rows]).all()), "two ranks choose other tokens: use `world`")


CHECKS: tuple[Check, ...] = (
    result_is_a_bool_mask,
    inputs_are_left_alone,
    order_and_padding_do_not_matter,
    two_ranks_choose_what_one_chooses,
)
