"""Cuts: every row once, within the limits, siblings together."""

import pytest
import torch
from lightrft_core.data import Batch
from lightrft_engines.training.microbatch import Limits, cut_packed, cut_padded


def batch_of(rows) -> Batch:
    """Rows as (prompt, completion length)."""
    lengths = torch.tensor([length for _, length in rows])
    empty = torch.zeros(len(rows), 1)
    return Batch(
        prompt_ids=tuple(str(prompt) for prompt, _ in rows),
        prompt_token_ids=tuple(prompt for prompt, _ in rows),
        completion_ids_BT=empty,
        mask_BT=empty,
        lengths_B=lengths,
        group_B=lengths,
        rewards_B=lengths,
        scored_B=lengths,
        engine_logprobs_BT=empty,
    )


A, B = (1,) * 10, (2,) * 4
ROWS = batch_of([(A, 5), (B, 3), (A, 6), (B, 30), (A, 1)])


@pytest.mark.parametrize("cut", [cut_packed, cut_padded])
@pytest.mark.parametrize(
    "limits", [Limits(None, 1), Limits(2, 1000), Limits(None, 25), Limits(1, 1000), Limits(None, 1000)]
)
def test_every_row_is_in_exactly_one_part(cut, limits):
    parts = cut(ROWS, [0, 1, 2, 3, 4], limits)
    assert sorted(row for part in parts for row in part) == [0, 1, 2, 3, 4]
    assert all(limits.rows is None or len(part) <= limits.rows for part in parts)


def test_packed_parts_share_prompts_and_count_them_once():
    assert cut_packed(ROWS, [0, 1, 2, 3, 4], Limits(None, 22)) == [[0, 2, 4], [1], [3]]
    assert cut_packed(ROWS, [0, 1, 2, 3, 4], Limits(None, 59)) == [[0, 2, 4, 1, 3]]
    assert cut_packed(ROWS, [0, 1, 2, 3, 4], Limits(None, 58)) == [[0, 2, 4], [1, 3]]


def test_padded_parts_hold_rows_of_like_length_longest_first():
    assert cut_padded(ROWS, [0, 1, 2, 3, 4], Limits(None, 50)) == [[3], [2, 0, 4], [1]]


def test_no_rows_make_no_parts():
    assert cut_packed(ROWS, [], Limits(None, 9)) == cut_padded(ROWS, [], Limits(None, 9)) == []
