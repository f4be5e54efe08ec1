"""Rows move between ranks whole, with all that belongs to them, and their values come home."""

import torch
from lightrft_core.protocols import SoloWorld
from lightrft_engines.config import TextConfig
from lightrft_engines.text import TextAdapter
from lightrft_engines.training.exchange import Exchange
from lightrft_engines.world import open_world

from tests.engines.ranks import on_ranks

SHARES = ([0, 1, 2, 3], [], [4, 5, 6, 7])  # groups of 4, 3 and 1 rows; one rank has none
CPU = torch.device("cpu")


def batch_of(kit, folder):
    batch = TextAdapter(TextConfig(path=str(folder)), kit.setup(folder)).collate(kit.groups())
    batch.old_logprobs_BT = torch.randn(batch.mask_BT.shape, generator=torch.Generator().manual_seed(0))
    batch.media = tuple({"pixels": torch.full((2, row + 1), float(row)), "note": f"row {row}"} for row in range(8))
    return batch


def facts(batch, row):
    """All there is of a row, without its padding."""
    length = int(batch.lengths_B[row])
    media = {key: str(value) for key, value in sorted(batch.media[row].items())}
    tensors = (batch.completion_ids_BT, batch.mask_BT, batch.old_logprobs_BT, batch.engine_logprobs_BT)
    return batch.prompt_ids[row], batch.prompt_token_ids[row], [item[row, :length].tolist() for item in tensors], media


def move(kit, folder, rank, width, rows):
    own = batch_of(kit, folder).rows(SHARES[rank])
    share = Exchange(open_world(CPU), CPU, width=width).share(own, [row for row in rows if row < len(own)])
    values_BT = share.batch.old_logprobs_BT * 2
    return [facts(share.batch, row) for row in range(len(share.batch))], share.is_lead, share.home(values_BT).tolist()


def test_rows_arrive_whole_and_each_once(kit, qwen_folder, tmp_path):
    whole = batch_of(kit, qwen_folder)
    results = on_ranks(lambda rank: move(kit, qwen_folder, rank, 1, range(8)), 3, tmp_path)
    arrived = [row for rows, _, _ in results for row in rows]
    assert sorted(map(repr, arrived)) == sorted(repr(facts(whole, row)) for row in range(8))
    assert all(rows for rows, _, _ in results)  # the rank that had none works too


def test_siblings_stay_together(kit, qwen_folder, tmp_path):
    results = on_ranks(lambda rank: move(kit, qwen_folder, rank, 1, range(8)), 3, tmp_path)
    homes = [{row[0] for row in rows} for rows, _, _ in results]
    assert sorted(name for names in homes for name in names) == ["p0", "p1", "p2"]


def test_values_come_home_to_their_rows(kit, qwen_folder, tmp_path):
    whole = batch_of(kit, qwen_folder)
    results = on_ranks(lambda rank: move(kit, qwen_folder, rank, 1, [1, 3]), 3, tmp_path)
    for rank, (_, _, home) in enumerate(results):
        own = whole.rows(SHARES[rank])
        expected = torch.zeros(own.mask_BT.shape)
        for row in [row for row in (1, 3) if row < len(own)]:
            expected[row] = own.old_logprobs_BT[row] * 2
        assert torch.equal(torch.tensor(home).reshape(expected.shape), expected)


def test_ranks_of_one_bin_hold_the_same_rows_and_one_of_them_counts(kit, qwen_folder, tmp_path):
    results = on_ranks(lambda rank: move(kit, qwen_folder, rank, 3, range(8)), 3, tmp_path)
    assert results[0][0] == results[1][0] == results[2][0]
    assert len(results[0][0]) == 8
    assert [is_lead for _, is_lead, _ in results] == [True, False, False]


def test_alone_rows_stay_where_they_are(kit, qwen_folder):
    batch = batch_of(kit, qwen_folder)
    share = Exchange(SoloWorld(), CPU).share(batch, [5, 2])
    assert share.batch.prompt_ids == ("p1", "p0")
    home = share.home(torch.ones(2, batch.mask_BT.shape[1]))
    assert home.any(-1).nonzero().flatten().tolist() == [2, 5]
