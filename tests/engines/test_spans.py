"""Runs of a tensor's entries on ranks: put together, cut again, and shared out for writing."""

import pytest
import torch
from lightrft_engines.training.spans import Span, shared_out

from tests.engines.ranks import on_ranks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_is_put_together_on_every_rank_or_on_one(tmp_path, dtype):
    whole = torch.arange(1, 8, dtype=dtype).view(7, 1)
    bounds = ((0, 4), (4, 7), (7, 7))  # a rank may have none of it

    def work(rank):
        first, last = bounds[rank]
        span = Span(whole.flatten()[first:last], first, whole.shape)
        everywhere, on_one = span.whole(), span.whole(1)
        assert torch.equal(span.cut(whole), span.entries_N)
        assert torch.equal(span.holding(span.entries_N + 1).entries_N, span.entries_N + 1)
        return torch.equal(everywhere, whole), torch.equal(on_one, whole)

    found = on_ranks(work, 3, tmp_path)
    assert [everywhere for everywhere, _ in found] == [True] * 3
    assert found[1][1]


@pytest.mark.parametrize(
    ("sizes", "owners"),
    [([4, 4, 4, 4], [0, 0, 1, 1]), ([10, 1, 1], [0, 1, 1]), ([1, 1, 10], [0, 0, 0]), ([], []), ([0, 0], [0, 0])],
)
def test_neighbours_stay_together_and_ranks_get_like_shares(sizes, owners):
    assert shared_out(sizes, 2) == owners
