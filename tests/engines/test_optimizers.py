"""Optimizers: what each updates, by which numbers, where its state lives, and that it goes on from a checkpoint."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lightrft_core.errors import UserError
from lightrft_core.sections import OptimSection
from lightrft_engines.config import TextConfig
from lightrft_engines.text import TextAdapter
from lightrft_engines.training.config import Fsdp2Config, SingleConfig
from lightrft_engines.training.eight_bit import EightBitAdamW, Rows, dequantised
from lightrft_engines.training.fsdp2 import Fsdp2Placement
from lightrft_engines.training.muon import Muon
from lightrft_engines.training.optimizer import rules_for
from lightrft_engines.training.placed import Replicas, Source
from lightrft_engines.training.roles import Memory
from lightrft_engines.training.rules import AdamW
from lightrft_engines.training.single import PlacedBackend, start
from lightrft_engines.training.strategy import TorchStrategy
from torch import nn

from tests.engines.ranks import on_ranks
from tests.engines.test_strategies import OBJECTIVE, SHARES, batch_of, build, largest, steps

LR = 1e-2
OPTIMS = {
    "adamw": OptimSection(lr=LR, eps=1e-3, weight_decay=0.1),
    "adamw_8bit": OptimSection(lr=LR, eps=1e-3, weight_decay=0.1, optimizer="adamw_8bit"),
    "muon": OptimSection(lr=LR, eps=1e-3, weight_decay=0.1, optimizer="muon"),
}


@pytest.fixture(scope="module")
def wide_folder(kit, tmp_path_factory):
    """A model whose matrices are large enough for 8-bit moments."""
    sizes = {"hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 24}
    return kit.folder(tmp_path_factory.mktemp("model") / "wide", scale=1.0, **sizes)


def matrix(rows=48, columns=100, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=draw).requires_grad_()


def run(rule, master, num, seed=1, lr=LR):
    draw = torch.Generator().manual_seed(seed)
    for _ in range(num):
        master.grad = torch.randn(master.shape, generator=draw)
        rule.step(lr)


def alone(master):
    """A matrix that lies whole on this process."""
    module = SimpleNamespace(get_parameter=lambda name: master)
    return SimpleNamespace(module=module, whole=lambda name, own: own, part=lambda name, whole: whole)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("shape", [(48, 100), (100, 48)])
def test_muon_takes_the_steps_of_torchs_own(nesterov, adjust, shape):
    options = {"momentum": 0.9, "nesterov": nesterov, "ns_steps": 4, "adjust_lr_fn": adjust}
    optim = OptimSection(lr=LR, weight_decay=0.1, optimizer="muon", muon=options)
    own, theirs = matrix(*shape), matrix(*shape)
    run(Muon({"w": own}, optim, alone(own)), own, 4)
    muon = torch.optim.Muon([theirs], lr=LR, weight_decay=0.1, **options)
    run(SimpleNamespace(step=lambda lr: muon.step()), theirs, 4)
    assert torch.allclose(own, theirs, atol=1e-7)


def test_muon_is_for_the_matrices_of_blocks_and_the_rest_is_adamws(kit):
    model = kit.model("qwen2", tie_word_embeddings=False)
    masters = dict(model.named_parameters())
    adamw, muon = rules_for(OPTIMS["muon"], SimpleNamespace(module=model), masters)
    assert (type(adamw), type(muon)) == (AdamW, Muon)
    updated = {key.split(".", 1)[1] for key in muon.state()}
    assert updated == {name for name in masters if name.startswith("model.layers.") and masters[name].ndim == 2}
    assert {key.split(".", 1)[1] for key in adamw.state()} == masters.keys() - updated


def test_moments_of_8_bits_are_for_large_matrices_alone():
    model = nn.ModuleDict({"large": nn.Linear(64, 64), "small": nn.Linear(63, 65)})
    adamw, eight_bit = rules_for(OPTIMS["adamw_8bit"], SimpleNamespace(module=model), dict(model.named_parameters()))
    assert {key.split(".", 1)[1] for key in eight_bit.state()} == {"large.weight"}
    assert {key.split(".", 1)[1] for key in adamw.state()} == {"large.bias", "small.weight", "small.bias"}


def test_8_bit_moments_take_about_the_steps_of_whole_ones():
    own, theirs = matrix(), matrix()
    start = own.detach().clone()
    rule, whole = EightBitAdamW({"w": own}, OPTIMS["adamw_8bit"]), AdamW({"w": theirs}, OPTIMS["adamw"])
    run(rule, own, 10)
    run(whole, theirs, 10)
    moved = (theirs - start).norm()
    assert 0 < (own - theirs).norm() < 0.05 * moved
    state = rule.state()
    assert state["exp_avg_codes.w"].dtype == state["exp_avg_sq_codes.w"].dtype == torch.uint8


@pytest.mark.parametrize("columns", [100, 256, 700])
def test_8_bit_moments_resume_exactly(columns):
    first = matrix(columns=columns)
    rule = EightBitAdamW({"w": first}, OPTIMS["adamw_8bit"])
    run(rule, first, 3)
    second = first.detach().clone().requires_grad_()
    resumed = EightBitAdamW({"w": second}, OPTIMS["adamw_8bit"])
    resumed.load({key: tensor.clone() for key, tensor in rule.state().items()}, 3)
    run(rule, first, 3, seed=2)
    run(resumed, second, 3, seed=2)
    assert torch.equal(first, second)


def moments(rule, key, name="w"):
    state, code = rule.state(), rule._adamw.name2qmap["dynamic" if key == "exp_avg" else "udynamic"]
    return dequantised(state[f"{key}_codes.{name}"], state[f"{key}_scales.{name}"], state[f"place.{name}"], code)


@pytest.mark.parametrize(("columns", "tolerance"), [(256, 0.0), (100, 0.02)])
def test_8_bit_moments_are_read_by_ranks_that_have_other_rows(columns, tolerance):
    whole = matrix(columns=columns)
    rule = EightBitAdamW({"w": whole}, OPTIMS["adamw_8bit"])
    run(rule, whole, 3)
    for rows in (slice(0, 17), slice(17, 48), slice(48, 48)):
        part = whole.detach()[rows].clone().requires_grad_()
        own = EightBitAdamW({"w": part}, OPTIMS["adamw_8bit"])
        own.load({key: tensor[rows] for key, tensor in rule.state().items()}, 3)
        for key in ("exp_avg", "exp_avg_sq"):
            expected = moments(rule, key)[rows]
            assert torch.allclose(moments(own, key), expected, rtol=0, atol=tolerance * float(moments(rule, key).max()))


def test_scales_of_rows_are_those_of_their_blocks():
    rows = Rows(5, 100, torch.device("cpu"))
    spread = rows.spread(torch.tensor([1.0, 2.0]))
    assert spread[:, 0].tolist() == [1, 1, 1, 2, 2]
    assert spread[:, 1].tolist() == [0, 0, 2, 0, 0]  # the third row begins in the first block and ends in the second
    assert rows.joined(spread).tolist() == [1.0, 2.0]


def test_8_bit_moments_say_what_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"Install lightrft-engines\[bitsandbytes\]") as caught:
        EightBitAdamW({"w": matrix()}, OPTIMS["adamw_8bit"])
    assert caught.value.where == "optim.optimizer"


@pytest.mark.parametrize("optimizer", OPTIMS)
def test_a_run_resumes_exactly(kit, wide_folder, tmp_path, optimizer):
    first, adapter = build(kit, wide_folder, "single", optim=OPTIMS[optimizer])
    step(kit, first, adapter, 0)
    first.save(tmp_path)
    second, _ = build(kit, wide_folder, "single", optim=OPTIMS[optimizer])
    second.load(tmp_path)
    for strategy in (first, second):
        step(kit, strategy, adapter, 1)
    weights = dict(second.weights())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in first.weights())


def step(kit, strategy, adapter, seed):
    batch = batch_of(kit, adapter, seed)
    strategy.fill(batch, frozenset({"old_logprobs", "ref_logprobs"}))
    return strategy.step(batch, OBJECTIVE)


def test_another_optimizers_checkpoint_is_refused(kit, wide_folder, tmp_path):
    first, _ = build(kit, wide_folder, "single", optim=OPTIMS["muon"])
    first.save(tmp_path)
    second, _ = build(kit, wide_folder, "single", optim=OPTIMS["adamw"])
    with pytest.raises(UserError, match="policy/optimizer belongs to another model or optimizer"):
        second.load(tmp_path)


def on_two(kit, folder, tmp_path, use, optimizer, **options):
    optim = OPTIMS[optimizer]
    return on_ranks(lambda rank: steps(kit, folder, use, SHARES[2][rank], optim=optim, **options), 2, tmp_path)


@pytest.mark.parametrize("use", ["ddp", "fsdp2"])
def test_ranks_take_about_the_8_bit_steps_of_one_process(kit, wide_folder, tmp_path, use):
    losses, weights, _ = steps(kit, wide_folder, "single", list(range(8)), optim=OPTIMS["adamw_8bit"])
    for found, trained, _ in on_two(kit, wide_folder, tmp_path, use, "adamw_8bit"):
        assert largest(trained, weights) <= 3e-3  # blocks of 256 begin elsewhere; a step moves weights by up to 1e-2
        assert found == [pytest.approx(one, rel=0.05, abs=1e-2) for one in losses]


@pytest.mark.parametrize("options", [{}, {"tensor_parallel": 2}])
def test_muon_on_shards_takes_the_steps_of_torchs_own(kit, wide_folder, tmp_path, options):
    def work(rank):
        config, setup = Fsdp2Config(**options), kit.setup(wide_folder)
        source = Source(lambda: TextAdapter(TextConfig(path=str(wide_folder)), setup).load("policy"))
        placed = Fsdp2Placement(config, start(config, setup), ()).place(source, learns=True)
        masters = {name: placed.master(name) for name in placed.trained() if "proj.weight" in name}
        muon, found = Muon(masters, OPTIMS["muon"], placed), {}
        for name, master in masters.items():
            master.grad = placed.part(name, torch.eye(*placed.module.get_parameter(name).shape)).clone()
        muon.step(LR)
        for name, master in masters.items():
            theirs = source.load().get_parameter(name)
            theirs.grad = torch.eye(*theirs.shape)
            torch.optim.Muon([theirs], lr=LR, weight_decay=0.1, adjust_lr_fn="match_rms_adamw").step()
            found[name] = float((placed.whole(name, master.detach()) - theirs).abs().max())
        return found

    for found in on_ranks(work, 2, tmp_path):
        assert len(found) == 14
        assert max(found.values()) <= 1e-7


@pytest.mark.parametrize("options", [{}, {"cpu_offload": True}])
def test_muon_on_shards_takes_the_steps_of_muon_on_whole_matrices(kit, wide_folder, tmp_path, options):
    """Both on two ranks: a sum in another order differs in its last bit, and bf16 iterations make that visible."""
    whole = on_two(kit, wide_folder, tmp_path, "single", "muon")
    sharded = on_two(kit, wide_folder, tmp_path, "fsdp2", "muon", **options)
    for (losses, weights, prints), (found, trained, own_prints) in zip(whole, sharded, strict=True):
        assert largest(trained, weights) <= 2e-6
        assert found == [pytest.approx(one, rel=1e-3, abs=2e-5) for one in losses]
        assert own_prints == pytest.approx(prints, rel=1e-4, abs=1e-4)


def test_a_sharded_checkpoint_of_8_bit_moments_is_read_by_one_process(kit, wide_folder, tmp_path):
    def work(rank):
        strategy, adapter = build(kit, wide_folder, "fsdp2", optim=OPTIMS["adamw_8bit"])
        step(kit, strategy, adapter, 0)
        strategy.save(tmp_path / "saved")
        step(kit, strategy, adapter, 1)
        return {name: tensor.tolist() for name, tensor in strategy.weights()}

    (tmp_path / "saved").mkdir()
    trained, _ = on_ranks(work, 2, tmp_path)
    alone, adapter = build(kit, wide_folder, "single", optim=OPTIMS["adamw_8bit"])
    alone.load(tmp_path / "saved")
    step(kit, alone, adapter, 1)
    weights = {name: tensor.tolist() for name, tensor in alone.weights()}
    assert largest(trained, weights) <= 3e-3


def weights_after_steps(kit, folder, placement_of, optim, precision, masters_on):
    """The weights of a policy whose masters live on a device, after three steps."""
    config, setup = SingleConfig(precision=precision), kit.setup(folder, optim=optim, needs=frozenset())
    setup.model = TextAdapter(TextConfig(path=str(folder)), setup)
    place = start(config, setup)
    backend = PlacedBackend(
        place.world, place.device, place.dtype, placement_of(place), Memory(False, False, masters_on), False
    )
    strategy = TorchStrategy(config, setup, backend)
    for seed in range(3):
        strategy.step(batch_of(kit, setup.model, seed), POLICY_ALONE)
    return {name: tensor.float().tolist() for name, tensor in strategy.weights()}


def replicas(place):
    return Replicas(place.device, place.dtype, place.world)


def shards(place):
    return Fsdp2Placement(Fsdp2Config(), place, ())


POLICY_ALONE = replace(OBJECTIVE, kl=None, kl_coef=0.0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("placement_of", [replicas, shards])
def test_masters_that_live_elsewhere_change_no_number(kit, wide_folder, tmp_path, placement_of, precision, optimizer):
    def work(rank):
        arguments = (kit, wide_folder, placement_of, OPTIMS[optimizer], precision)
        there = weights_after_steps(*arguments, torch.device("cpu"))
        return there == weights_after_steps(*arguments, None)

    assert on_ranks(work, 1, tmp_path) == [True]


@pytest.mark.parametrize("use", ["single", "ddp", "fsdp2"])
def test_an_offload_to_the_cpu_is_refused_on_a_cpu(kit, wide_folder, tmp_path, use):
    def work(rank):
        with pytest.raises(UserError, match="has no effect: the model is on the CPU") as caught:
            build(kit, wide_folder, use, adam_offload=True)
        return caught.value.where

    assert on_ranks(work, 1, tmp_path) == ["strategy.adam_offload"]


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", OPTIMS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_offload_of_a_gpus_masters_takes_the_same_steps(kit, wide_folder, precision, optimizer):
    def weights(**options):
        return steps(
            kit, wide_folder, "single", list(range(8)), optim=OPTIMS[optimizer], precision=precision, **options
        )[1]

    assert largest(weights(adam_offload=True), weights()) <= (1e-5 if precision == "fp32" else 2e-2)
