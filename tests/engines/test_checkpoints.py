"""Checkpoints go on anywhere: other ranks, other strategies, other threads; what is missing or foreign is named."""

import json
import os
import resource
import shutil
from pathlib import Path
from threading import Thread

import pytest
import torch
from lightrft_core.checkpoints import Checkpoints
from lightrft_core.errors import RunFailed, UserError
from lightrft_core.sections import CriticSection, OptimSection
from lightrft_engines.training.files import read_folder
from safetensors import safe_open
from torch.distributed.checkpoint import HuggingFaceStorageReader
from transformers import AutoModelForCausalLM

from tests.engines.ranks import on_ranks
from tests.engines.test_strategies import OBJECTIVE, OPTIM, batch_of, build, largest

CRITIC = CriticSection(lr=1e-2, eps=1e-3)
SHARES = {1: (list(range(8)),), 2: ([0, 1, 2, 5, 7], [3, 4, 6]), 4: ([0, 1, 2, 3], [], [4, 5], [6, 7])}


def step(kit, strategy, adapter, rows, seed):
    batch = batch_of(kit, adapter, seed).rows(rows)
    needs = {"old_logprobs", "ref_logprobs"} | ({"values"} if strategy.critic else set())
    strategy.fill(batch, frozenset(needs))
    strategy.step(batch, OBJECTIVE)


def weights_of(strategy) -> dict[str, list]:
    return {name: tensor.float().tolist() for name, tensor in strategy.weights()}


def folders_of(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Every tensor of a checkpoint, whole, whoever wrote it."""
    found = {}
    for folder in sorted({file.parent for file in path.rglob("*.safetensors")} - {path}):
        sizes = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        like = {name: torch.empty(item.size, dtype=item.properties.dtype) for name, item in sizes.items()}
        found[folder.relative_to(path).as_posix()] = read_folder(folder, like)
    return found


def require_equal(one: Path, other: Path) -> None:
    first, second = folders_of(one), folders_of(other)
    assert first.keys() == second.keys()
    for folder, tensors in first.items():
        assert tensors.keys() == second[folder].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, second[folder][name]), f"{folder}: {name}"


def run_on(size: int, tmp_path: Path, work):
    return [work(0)] if size == 1 else on_ranks(work, size, tmp_path)


class Written:
    """A checkpoint after one step, with everything that one may hold, and the weights one step later."""

    def __init__(self, kit, model: Path, folder: Path, use: str, size: int, **options) -> None:
        self.path, self.options = folder / "checkpoint", {"critic": CRITIC, "ema": True}
        self.path.mkdir(parents=True)

        def work(rank):
            strategy, adapter = build(kit, model, use, **self.options, **options)
            step(kit, strategy, adapter, SHARES[size][rank], 0)
            strategy.refresh_reference()
            strategy.save(self.path)
            step(kit, strategy, adapter, SHARES[size][rank], 1)
            return weights_of(strategy)

        self.later = on_ranks(work, size, folder)[0]


@pytest.fixture(scope="module")
def by_four(kit, qwen_folder, tmp_path_factory) -> Written:
    """What four ranks wrote under fsdp2."""
    return Written(kit, qwen_folder, tmp_path_factory.mktemp("four"), "fsdp2", 4)


@pytest.fixture(scope="module")
def by_one(kit, qwen_folder, tmp_path_factory) -> Written:
    """What one process wrote."""
    return Written(kit, qwen_folder, tmp_path_factory.mktemp("one"), "single", 1)


TARGETS = [
    ("single", 1, {}),
    ("single", 2, {}),
    ("ddp", 2, {}),
    ("fsdp2", 1, {}),
    ("fsdp2", 2, {}),
    ("fsdp2", 4, {"shard_size": 2}),
    ("fsdp2", 2, {"cpu_offload": True}),
]


@pytest.mark.parametrize("source", ["by_four", "by_one"])
@pytest.mark.parametrize(("use", "size", "options"), TARGETS)
def test_a_run_goes_on_under_any_strategy_on_any_number_of_ranks(
    kit, qwen_folder, tmp_path, request, source, use, size, options
):
    written: Written = request.getfixturevalue(source)
    (tmp_path / "again").mkdir()

    def work(rank):
        strategy, adapter = build(kit, qwen_folder, use, **written.options, **options)
        strategy.load(written.path)
        strategy.save(tmp_path / "again")
        step(kit, strategy, adapter, SHARES[size][rank], 1)
        return weights_of(strategy)

    for weights in on_ranks(work, size, tmp_path):
        assert largest(weights, written.later) <= 1e-6
    require_equal(written.path, tmp_path / "again")
    assert set(folders_of(written.path)) == {
        "critic/optimizer", "critic/weights", "ema", "policy/optimizer", "policy/weights", "reference",
    }  # fmt: skip


def test_every_rank_writes_its_shards_alone(by_four):
    files = sorted(path.name for path in (by_four.path / "policy/weights").iterdir())
    assert files == [f"shard-{rank:05d}.safetensors" for rank in range(4)]
    rows = []
    for name in files:
        with safe_open(by_four.path / "policy/weights" / name, "pt") as file:
            rows.append(file.get_slice("model.embed_tokens.weight").get_shape()[0])
    assert sum(rows) == 97


@pytest.mark.parametrize("use", ["single", "ddp", "fsdp2"])
def test_a_staged_copy_is_of_its_moment_and_is_written_while_training_goes_on(kit, qwen_folder, tmp_path, use):
    for name in ("direct", "staged", "alone"):
        (tmp_path / name).mkdir()

    def work(rank):
        strategy, adapter = build(kit, qwen_folder, use, critic=CRITIC, ema=True)
        step(kit, strategy, adapter, SHARES[2][rank], 0)
        strategy.save(tmp_path / "direct")
        write, write_alone = strategy.stage(export="hf"), strategy.stage(export="hf", state=False)
        trained = weights_of(strategy)
        thread = Thread(target=write, args=(tmp_path / "staged",))
        thread.start()
        for seed in (1, 2):
            step(kit, strategy, adapter, SHARES[2][rank], seed)
        thread.join()
        write_alone(tmp_path / "alone")
        return trained

    trained = on_ranks(work, 2, tmp_path)[0]
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "staged/hf")
    assert largest({name: tensor.tolist() for name, tensor in exported.named_parameters()}, trained) == 0
    assert [path.name for path in (tmp_path / "alone").iterdir()] == ["hf"]
    for path in (tmp_path / "alone/hf").iterdir():
        assert path.read_bytes() == (tmp_path / "staged/hf" / path.name).read_bytes()
    shutil.rmtree(tmp_path / "staged/hf")
    require_equal(tmp_path / "direct", tmp_path / "staged")
    for name in ("random-00000.safetensors", "random-00001.safetensors", "strategy.json"):
        assert (tmp_path / "direct" / name).read_bytes() == (tmp_path / "staged" / name).read_bytes()


def exporter(kit, folder, **options):
    """The strategy that any checkpoint here is exported with."""
    strategy, _ = build(kit, folder, "single", needs=(), learns=False, device="cpu", precision="fp32", **options)
    return strategy


def test_what_four_ranks_wrote_one_process_exports_with_the_trainers_logits(kit, qwen_folder, tmp_path):
    (tmp_path / "checkpoint").mkdir()

    def work(rank):
        strategy, adapter = build(kit, qwen_folder, "fsdp2", ema=True)
        step(kit, strategy, adapter, SHARES[4][rank], 0)
        strategy.save(tmp_path / "checkpoint")
        found = strategy.logprobs(batch_of(kit, adapter, 3)).logprobs_BT.tolist()
        return found, weights_of(strategy)

    logprobs, weights = on_ranks(work, 4, tmp_path)[0]
    strategy = exporter(kit, qwen_folder, ema=True)
    strategy.load(tmp_path / "checkpoint")
    strategy.export(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert largest({name: tensor.tolist() for name, tensor in model.named_parameters()}, weights) == 0
    _, adapter = build(kit, qwen_folder, "single")
    batch = batch_of(kit, adapter, 3)
    for row, length in enumerate(batch.lengths_B.tolist()):
        prompt, answer = list(batch.prompt_token_ids[row]), batch.completion_ids_BT[row, :length].tolist()
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        found = logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])[:, 0]
        assert found.tolist() == pytest.approx(logprobs[row][:length], abs=1e-5)


def test_an_export_is_in_the_numbers_that_were_trained_with(kit, qwen_folder, tmp_path):
    strategy, adapter = build(kit, qwen_folder, "single", precision="bf16", optim=OptimSection(lr=1e-5))
    step(kit, strategy, adapter, SHARES[1][0], 0)
    strategy.save(tmp_path)
    other = exporter(kit, qwen_folder)
    other.load(tmp_path)
    other.export(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert all(torch.equal(dict(model.named_parameters())[name], tensor) for name, tensor in strategy.weights())


def test_an_export_needs_no_optimizer_state(kit, qwen_folder, by_four, tmp_path):
    shutil.copytree(by_four.path, tmp_path / "checkpoint")
    shutil.rmtree(tmp_path / "checkpoint/policy/optimizer")
    strategy = exporter(kit, qwen_folder, ema=True)
    strategy.load(tmp_path / "checkpoint")
    strategy.take_average()
    strategy.export(tmp_path / "out")
    average = folders_of(by_four.path)["ema"]
    exported = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "out").named_parameters())
    assert all(torch.equal(exported[name], tensor) for name, tensor in average.items())


def test_each_rank_reads_its_own_part_alone(kit, qwen_folder, by_four, tmp_path, monkeypatch):
    read = []
    original = HuggingFaceStorageReader._process_read_request

    def counted(self, file, request, planner):
        read.append(request.lengths.numel())
        original(self, file, request, planner)

    monkeypatch.setattr(HuggingFaceStorageReader, "_process_read_request", counted)

    def work(rank):
        strategy, _ = build(kit, qwen_folder, "fsdp2", **by_four.options)
        strategy.load(by_four.path)
        return sum(read)

    numbers = on_ranks(work, 4, tmp_path)
    everything = sum(tensor.numel() for tensors in folders_of(by_four.path).values() for tensor in tensors.values())
    assert sum(numbers) == everything
    assert max(numbers) < 0.3 * everything


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_missing_file_of_a_rank_is_noticed(kit, qwen_folder, by_four, tmp_path, rank):
    shutil.copytree(by_four.path, tmp_path / "checkpoint")
    (tmp_path / f"checkpoint/policy/optimizer/shard-{rank:05d}.safetensors").unlink()
    strategy, _ = build(kit, qwen_folder, "single", **by_four.options)
    before = weights_of(strategy)
    with pytest.raises(UserError, match=r"policy/optimizer (lacks a part of|belongs to another model)"):
        strategy.load(tmp_path / "checkpoint")
    assert weights_of(strategy) == before


def test_shards_of_another_model_are_refused_by_name_and_nothing_changes(kit, by_four, tmp_path):
    wide = kit.folder(tmp_path / "wide", intermediate_size=56)

    def work(rank):
        strategy, _ = build(kit, wide, "fsdp2", **by_four.options)
        before = weights_of(strategy)
        with pytest.raises(UserError, match=r"policy/weights belongs to another model: model\.layers\.0\.mlp\.\S+ has"):
            strategy.load(by_four.path)
        return weights_of(strategy) == before

    assert on_ranks(work, 2, tmp_path) == [True, True]


def test_a_checkpoint_of_another_format_is_refused(kit, qwen_folder, by_one, tmp_path):
    shutil.copytree(by_one.path, tmp_path / "checkpoint")
    (tmp_path / "checkpoint/strategy.json").write_text(json.dumps({"format": 1}))
    strategy, _ = build(kit, qwen_folder, "single", **by_one.options)
    with pytest.raises(UserError, match="has format 1, and this version reads 3"):
        strategy.load(tmp_path / "checkpoint")


@pytest.mark.parametrize("is_staged", [False, True])
def test_a_disk_that_is_full_for_one_rank_fails_all_and_the_checkpoint_before_stays(
    kit, qwen_folder, tmp_path, is_staged
):
    root = tmp_path / "run/checkpoints"

    def work(rank):
        strategy, adapter = build(kit, qwen_folder, "fsdp2")
        checkpoints = Checkpoints(root, keep=1)
        checkpoints.save(1, {}, strategy.save, strategy.world)
        step(kit, strategy, adapter, SHARES[2][rank], 0)
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        write, world = (strategy.stage(), strategy.beside) if is_staged else (strategy.save, strategy.world)
        with pytest.raises(RunFailed) as failure:
            checkpoints.save(2, {}, write, world)
        return str(failure.value), checkpoints.newest(strategy.world).step

    (one, step_one), (other, step_other) = on_ranks(work, 2, tmp_path)
    assert one.partition(" (")[0] == other.partition(" (")[0]
    assert "could not be written: rank 1: " in one
    assert os.strerror(27) in one  # file too large
    assert "step_000001 is intact" in one
    assert (step_one, step_other) == (1, 1)
    assert [path.name for path in root.iterdir()] == ["step_000001"]


@pytest.mark.parametrize("file", ["policy/weights/shard-00001.safetensors", "random-00003.safetensors"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!")])
def test_a_damaged_file_of_one_rank_is_found_and_named_before_anything_is_read(
    kit, qwen_folder, tmp_path, caplog, file, damage
):
    root = tmp_path / "checkpoints"

    def write(rank):
        strategy, _ = build(kit, qwen_folder, "fsdp2")
        for number in (1, 2):
            Checkpoints(root, keep=2).save(number, {}, strategy.save, strategy.world)

    on_ranks(write, 4, tmp_path)
    damage(root / "step_000002" / file)
    assert Checkpoints(root, keep=2).newest().step == 1
    assert f"step_000002 is refused: {file} " in caplog.text


def test_numbers_drawn_after_a_resume_are_those_of_each_rank(kit, qwen_folder, tmp_path):
    (tmp_path / "checkpoint").mkdir()

    def work(rank):
        strategy, _ = build(kit, qwen_folder, "fsdp2", optim=OPTIM)
        strategy.save(tmp_path / "checkpoint")
        strategy.world.barrier()  # rank 0 writes what all ranks read
        drawn = torch.rand(3).tolist()
        strategy.load(tmp_path / "checkpoint")
        assert torch.rand(3).tolist() == drawn
        return drawn

    one, other = on_ranks(work, 2, tmp_path)
    assert one != other
