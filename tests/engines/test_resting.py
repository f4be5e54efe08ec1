"""Optimizer state that rests elsewhere: what moves, that it comes back bit for bit, and that a run does not notice."""

import pytest
import torch
from lightrft_core.abilities import RestingStrategy
from lightrft_core.errors import UserError
from lightrft_engines.config import TextConfig
from lightrft_engines.text import TextAdapter
from lightrft_engines.training.config import Fsdp2Config, SingleConfig
from lightrft_engines.training.resting import Resting, own_masters
from lightrft_engines.training.roles import Memory
from lightrft_engines.training.single import PlacedBackend, start
from lightrft_engines.training.strategy import TorchStrategy
from lightrft_engines.world import require_group

from tests.engines.test_optimizers import OPTIMS, POLICY_ALONE, replicas, shards, wide_folder
from tests.engines.test_strategies import batch_of, build, largest, steps

CPU = torch.device("cpu")
__all__ = ["wide_folder"]


@pytest.fixture
def shelves():
    draw = torch.Generator().manual_seed(0)
    return {
        "w": {"exp_avg": torch.randn(40, 30, generator=draw), "step": torch.tensor(3.0)},
        "b": {"exp_avg": torch.randn(7, generator=draw)},
    }


def test_large_tensors_move_and_come_back_bit_for_bit(shelves):
    before, pointer = shelves["w"]["exp_avg"].clone(), shelves["w"]["exp_avg"].data_ptr()
    resting = Resting(lambda: shelves, {}, CPU, CPU)
    resting.sleep()
    assert shelves["w"]["exp_avg"].data_ptr() != pointer
    asleep = shelves["w"]["exp_avg"]
    resting.wake()
    assert shelves["w"]["exp_avg"] is not asleep
    assert torch.equal(shelves["w"]["exp_avg"], before)


def test_small_tensors_stay(shelves):
    step, small = shelves["w"]["step"], shelves["b"]["exp_avg"]
    Resting(lambda: shelves, {}, CPU, CPU).sleep()
    assert shelves["w"]["step"] is step
    assert shelves["b"]["exp_avg"] is small


def test_memory_away_is_taken_once(shelves):
    resting = Resting(lambda: shelves, {}, CPU, CPU)
    beds = []
    for _ in range(2):
        resting.sleep()
        beds.append(shelves["w"]["exp_avg"].data_ptr())
        resting.wake()
    assert beds[0] == beds[1]


def test_sleeping_twice_and_waking_twice_is_doing_it_once(shelves):
    resting = Resting(lambda: shelves, {}, CPU, CPU)
    resting.wake()
    before = shelves["w"]["exp_avg"]
    resting.sleep()
    resting.sleep()
    resting.wake()
    once = shelves["w"]["exp_avg"]
    resting.wake()
    assert shelves["w"]["exp_avg"] is once
    assert torch.equal(once, before)


def test_masters_move_in_place_so_that_whoever_holds_them_sees_it():
    master = torch.randn(30, 30).requires_grad_()
    before, pointer = master.detach().clone(), master.data_ptr()
    resting = Resting(dict, {"w": master}, CPU, CPU)
    resting.sleep()
    assert master.data_ptr() != pointer
    resting.wake()
    assert torch.equal(master, before)


def test_a_master_that_is_the_parameter_itself_stays():
    parameter, other = torch.randn(30, 30), torch.randn(30, 30)
    view = parameter.detach().requires_grad_()
    assert own_masters(["w", "v"], [view, other.clone()], [parameter, other]).keys() == {"v"}


def after_steps(kit, folder, placement_of, optim, precision, rests_on, *, saves=None):
    """Weights after three steps, with a rest after each; and after a checkpoint taken in the second one."""
    config, setup = SingleConfig(precision=precision), kit.setup(folder, optim=optim, needs=frozenset())
    setup.model = TextAdapter(TextConfig(path=str(folder)), setup)
    place = start(config, setup)
    memory = Memory(False, False, rests_on=rests_on)
    backend = PlacedBackend(place.world, place.device, place.dtype, placement_of(place), memory, False)
    strategy = TorchStrategy(config, setup, backend)
    assert isinstance(strategy, RestingStrategy)
    strategy.sleep()
    for seed in range(3):
        strategy.wake()
        strategy.step(batch_of(kit, setup.model, seed), POLICY_ALONE)
        strategy.sleep()
        if seed == 1 and saves is not None:
            strategy.save(saves)
            strategy.load(saves)
    return {name: tensor.float().tolist() for name, tensor in strategy.weights()}


@pytest.mark.parametrize("optimizer", OPTIMS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("placement_of", [replicas, shards])
def test_a_run_whose_state_rests_takes_the_same_steps(kit, wide_folder, tmp_path, placement_of, precision, optimizer):
    require_group(CPU)  # which sharding asks for even alone
    arguments = (kit, wide_folder, placement_of, OPTIMS[optimizer], precision)
    plain = after_steps(*arguments, None)
    assert after_steps(*arguments, CPU) == plain
    assert after_steps(*arguments, CPU, saves=tmp_path) == plain


@pytest.mark.parametrize("use", ["single", "ddp", "fsdp2"])
def test_it_is_refused_on_a_cpu(kit, wide_folder, use):
    with pytest.raises(UserError, match="has no effect: the model is on the CPU") as caught:
        build(kit, wide_folder, use, optimizer_offload=True)
    assert caught.value.where == "strategy.optimizer_offload"


def test_it_does_nothing_beside_options_that_keep_the_state_on_the_cpu():
    assert SingleConfig(adam_offload=True).idle()["optimizer_offload"].because == "adam_offload"
    assert Fsdp2Config(cpu_offload=True).idle()["optimizer_offload"].because == "cpu_offload"
    assert "optimizer_offload" not in SingleConfig().idle()


def test_a_cpu_has_no_memory_of_its_own_to_measure(kit, wide_folder):
    assert build(kit, wide_folder, "single")[0].peak_bytes() is None


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", OPTIMS)
def test_state_leaves_a_gpu_and_comes_back(kit, wide_folder, optimizer):
    strategy, adapter = build(kit, wide_folder, "single", optim=OPTIMS[optimizer], precision="bf16", needs=(),
                              optimizer_offload=True)  # fmt: skip
    strategy.step(batch_of(kit, adapter, 0), POLICY_ALONE)
    awake = torch.cuda.memory_allocated()
    strategy.sleep()
    asleep = torch.cuda.memory_allocated()
    num = sum(tensor.numel() for _, tensor in strategy.weights())
    assert awake - asleep > 4 * num  # masters alone are 4 bytes
    strategy.wake()
    assert torch.cuda.memory_allocated() == pytest.approx(awake, rel=0.02)
    assert strategy.peak_bytes() >= awake
    assert strategy.step(batch_of(kit, adapter, 1), POLICY_ALONE).skipped is None


@pytest.mark.gpu
def test_a_rest_changes_no_number_on_a_gpu(kit, wide_folder):
    plain, moved = (
        steps(kit, wide_folder, "single", list(range(8)), precision="fp32", **options)[1]
        for options in ({}, {"optimizer_offload": True})
    )
    assert largest(moved, plain) <= 1e-6
