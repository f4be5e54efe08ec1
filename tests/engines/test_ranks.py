"""Two gloo ranks make the same update as one; forked, so that nothing is imported twice."""

import pytest
import torch
from lightrft_core.data import LossOutput
from lightrft_core.objective import Objective
from lightrft_core.protocols import SoloWorld
from lightrft_core.sections import OptimSection
from lightrft_engines.config import TextConfig
from lightrft_engines.text import TextAdapter
from lightrft_engines.training.config import SingleConfig
from lightrft_engines.training.single import SingleStrategy
from lightrft_engines.world import TorchWorld, open_world

from tests.engines.ranks import on_ranks

OPTIM = OptimSection(lr=1e-2, eps=1e-3)
OBJECTIVE = Objective(lambda inputs: LossOutput(-inputs.logprobs_BT * inputs.advantages_BT))


def update(kit, folder, rows, poison=False):
    """Parameters, norm, metrics and skip of one step on some rows of the batch, as plain lists."""
    setup = kit.setup(folder, optim=OPTIM)
    setup.model = adapter = TextAdapter(TextConfig(path=str(folder)), setup)
    strategy = SingleStrategy(SingleConfig(), setup)
    batch = adapter.collate(kit.groups())
    batch.advantages_BT = torch.linspace(-1, 1, len(batch))[:, None].expand(batch.mask_BT.shape).contiguous()
    if poison:
        batch.advantages_BT[rows[0]] = float("nan")
    stats = strategy.step(batch.rows(rows), OBJECTIVE)
    values = {name: tensor.tolist() for name, tensor in strategy.weights()}
    return values, stats.grad_norm, dict(stats.metrics), stats.skipped


def largest(found, expected) -> float:
    return max(float((torch.tensor(found[name]) - torch.tensor(expected[name])).abs().max()) for name in expected)


def test_two_ranks_make_the_update_of_one(kit, qwen_folder, tmp_path):
    values, norm, metrics, _ = update(kit, qwen_folder, list(range(8)))
    shares = ([0, 1, 2, 5, 7], [3, 4, 6])  # uneven on purpose
    first, second = on_ranks(lambda rank: update(kit, qwen_folder, shares[rank]), 2, tmp_path)
    assert largest(first[0], values) <= 1e-6
    assert first[0] == second[0]
    assert first[1] == second[1] == pytest.approx(norm, rel=1e-5)
    assert first[2] == second[2]
    for name, (total, count) in metrics.items():
        assert first[2][name] == (pytest.approx(total, rel=1e-4, abs=1e-6), pytest.approx(count)), name


def test_a_rank_without_rows_takes_part(kit, qwen_folder, tmp_path):
    values, *_ = update(kit, qwen_folder, list(range(8)))
    first, second = on_ranks(lambda rank: update(kit, qwen_folder, list(range(8)) if rank else []), 2, tmp_path)
    assert largest(first[0], values) <= 1e-6
    assert first[0] == second[0]


def test_one_ranks_nan_makes_every_rank_skip(kit, qwen_folder, tmp_path):
    start = update(kit, qwen_folder, [0], poison=True)
    assert start[3] is not None
    results = on_ranks(lambda rank: update(kit, qwen_folder, [rank, rank + 2], poison=rank == 1), 2, tmp_path)
    assert [result[3] for result in results] == ["the gradient norm is nan"] * 2
    assert all(result[0] == start[0] for result in results)


def use_world(rank: int):
    world = open_world(torch.device("cpu"))
    assert isinstance(world, TorchWorld)
    world.barrier()
    items = world.gather({"rank": rank, "text": "é" * (rank * 7), "none": None})
    return world.size, world.sum([1.0, 0.1 * rank]), items


def test_the_world_sums_in_float64_and_gathers_json_of_any_length(tmp_path):
    results = on_ranks(use_world, 3, tmp_path)
    assert results[0] == results[1] == results[2]
    size, sums, items = results[0]
    assert size == 3
    assert sums == [3.0, pytest.approx(0.3, abs=1e-15)]
    assert items == [{"rank": rank, "text": "é" * (rank * 7), "none": None} for rank in range(3)]


def test_alone_the_world_is_solo(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert isinstance(open_world(torch.device("cpu")), SoloWorld)
