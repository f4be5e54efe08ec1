"""Every strategy takes on several ranks the steps of one process: same losses, same weights, wherever rows are."""

from importlib import import_module

import pytest
import torch
from lightrft_core.data import LossOutput
from lightrft_core.errors import UserError
from lightrft_core.objective import Objective
from lightrft_core.sections import CriticSection, OptimSection
from lightrft_engines.config import TextConfig
from lightrft_engines.text import TextAdapter

from tests.engines.ranks import on_ranks

OPTIM = OptimSection(lr=1e-2, eps=1e-3, max_grad_norm=0.5)
OBJECTIVE = Objective(
    lambda inputs: LossOutput(-(inputs.logprobs_BT - inputs.old_logprobs_BT).exp() * inputs.advantages_BT),
    kl=lambda own_BT, ref_BT: (own_BT - ref_BT) ** 2,
    kl_coef=0.1,
    entropy_coef=0.01,
)
STRATEGIES = {
    "single": ("single:SingleStrategy", "SingleConfig"),
    "ddp": ("single:DDPStrategy", "DDPConfig"),
    "fsdp2": ("fsdp2:Fsdp2Strategy", "Fsdp2Config"),
    "deepspeed": ("deepspeed:DeepSpeedStrategy", "DeepSpeedConfig"),
}
NUM_STEPS = 3


def build(
    kit,
    folder,
    use,
    *,
    critic=None,
    needs=("ref_logprobs",),
    optim=OPTIM,
    lora=None,
    freeze=(),
    learns=True,
    **options,
):
    strategy, config = strategy_of(use)
    setup = kit.setup(folder, optim=optim, critic=critic, needs=frozenset(needs), learns=learns)
    setup.model = TextAdapter(TextConfig(path=str(folder), lora=lora, freeze=freeze), setup)
    return strategy(config(**options), setup), setup.model


def strategy_of(use):
    """Its classes. Called before ranks are forked, so that not every one of them imports all that it needs."""
    if use == "deepspeed":
        import_module("deepspeed.runtime.zero.muon.muon_optimizer")  # with torch's compiler: at DeepSpeed's first start
    target, config = STRATEGIES[use]
    module, name = target.split(":")
    strategy = getattr(import_module(f"lightrft_engines.training.{module}"), name)
    return strategy, getattr(import_module("lightrft_engines.training.config"), config)


def batch_of(kit, adapter, seed):
    batch = adapter.collate(kit.groups(seed))
    draw = torch.Generator().manual_seed(seed)
    batch.advantages_BT = torch.randn(len(batch), 1, generator=draw).expand(batch.mask_BT.shape).contiguous()
    batch.returns_BT = batch.advantages_BT + 0.5
    return batch


def steps(kit, folder, use, rows, *, critic=None, **options):
    """Losses and norms of some steps on this rank's rows, and the weights after them."""
    strategy, adapter = build(kit, folder, use, critic=critic, **options)
    found = []
    for seed in range(NUM_STEPS):
        batch = batch_of(kit, adapter, seed).rows(rows)
        needs = {"old_logprobs", "ref_logprobs"} | ({"values"} if critic else set())
        strategy.fill(batch, frozenset(needs))
        stats = strategy.step(batch, OBJECTIVE)
        found.append({name: pair[0] / pair[1] for name, pair in stats.metrics.items()} | {"norm": stats.grad_norm})
    weights = {name: tensor.tolist() for name, tensor in strategy.weights()}
    return found, weights, dict(strategy.fingerprint())


def largest(found, expected) -> float:
    return max(float((torch.tensor(found[name]) - torch.tensor(expected[name])).abs().max()) for name in expected)


@pytest.fixture(scope="module")
def alone(kit, qwen_folder):
    """What one process does on all rows."""
    return steps(kit, qwen_folder, "single", list(range(8)))


SHARES = {2: ([0, 1, 2, 5, 7], [3, 4, 6]), 4: ([0, 1, 2, 3], [], [4, 5], [6, 7])}  # uneven on purpose


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    ("use", "options"),
    [
        ("single", {}),
        ("single", {"balance": False, "packing": False}),
        ("single", {"sequence_parallel": 2}),
        ("ddp", {}),
        ("ddp", {"micro_batch_size": 1}),
        ("fsdp2", {}),
        ("fsdp2", {"micro_batch_size": 1, "packing": False, "meta_init": False}),
        ("fsdp2", {"checkpointing": True, "reshard_after_forward": False}),
        ("fsdp2", {"shard_size": 2, "sequence_parallel": 2}),
        ("fsdp2", {"cpu_offload": True}),
        ("fsdp2", {"tensor_parallel": 2}),
        ("deepspeed", {"stage": 1, "micro_batch_size": 1}),
        ("deepspeed", {"stage": 2, "micro_batch_size": 2, "packing": False, "checkpointing": True}),
        ("deepspeed", {"stage": 2, "sequence_parallel": 2}),
        ("deepspeed", {"stage": 3, "zpg": 2, "micro_batch_size": 1, "checkpointing": True}),
        ("deepspeed", {"stage": 3, "sequence_parallel": 2, "cpu_offload": True}),
    ],
)
def test_ranks_take_the_steps_of_one_process(kit, qwen_folder, tmp_path, alone, use, options, size):
    losses, weights, prints = alone
    strategy_of(use)
    results = on_ranks(lambda rank: steps(kit, qwen_folder, use, SHARES[size][rank], **options), size, tmp_path)
    for found, trained, own_prints in results:
        assert largest(trained, weights) <= 2e-6
        assert found == [pytest.approx(step, rel=1e-3, abs=2e-5) for step in losses]
        assert own_prints == pytest.approx(prints, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("use", "options"), [("ddp", {}), ("fsdp2", {}), ("deepspeed", {"stage": 3})])
def test_a_process_alone_is_a_world_of_one(kit, qwen_folder, tmp_path, alone, use, options):
    strategy_of(use)
    ((found, trained, _),) = on_ranks(lambda rank: steps(kit, qwen_folder, use, list(range(8)), **options), 1, tmp_path)
    assert largest(trained, alone[1]) <= 2e-6
    assert found == [pytest.approx(step, rel=1e-3, abs=2e-5) for step in alone[0]]


@pytest.mark.parametrize(
    ("use", "options"),
    [
        ("ddp", {}),
        ("fsdp2", {"sequence_parallel": 2}),
        ("fsdp2", {"packing": False, "checkpointing": True, "cpu_offload": True}),
        ("deepspeed", {"stage": 2}),
        ("deepspeed", {"stage": 3, "micro_batch_size": 1}),
    ],
)
def test_a_mixture_of_experts_takes_the_same_steps(kit, tmp_path, use, options):
    """Though the ranks' tokens go to different experts."""
    strategy_of(use)
    folder = kit.folder(tmp_path / "experts", "qwen3_moe")
    losses, weights, _ = steps(kit, folder, "single", list(range(8)))
    for found, trained, _ in on_ranks(lambda rank: steps(kit, folder, use, SHARES[2][rank], **options), 2, tmp_path):
        assert largest(trained, weights) <= 2e-6
        assert found == [pytest.approx(step, rel=1e-3, abs=2e-5) for step in losses]


@pytest.mark.parametrize(
    ("use", "options"),
    [
        ("ddp", {}),
        ("fsdp2", {}),
        ("fsdp2", {"sequence_parallel": 2}),
        ("deepspeed", {"stage": 2}),
        ("deepspeed", {"stage": 3, "zpg": 2}),
    ],
)
def test_a_critic_learns_beside_the_policy(kit, qwen_folder, tmp_path, use, options):
    critic = CriticSection(lr=1e-2, eps=1e-3)
    strategy_of(use)
    losses, weights, _ = steps(kit, qwen_folder, "single", list(range(8)), critic=critic)
    for found, trained, _ in on_ranks(
        lambda rank: steps(kit, qwen_folder, use, SHARES[2][rank], critic=critic, **options), 2, tmp_path
    ):
        assert largest(trained, weights) <= 2e-6
        assert found == [pytest.approx(step, rel=1e-3, abs=2e-5) for step in losses]


@pytest.mark.parametrize("option", ["activation_offload", "reference_offload"])
def test_moving_memory_off_a_gpu_is_refused_on_a_cpu(kit, qwen_folder, option):
    with pytest.raises(UserError, match=rf"strategy\.{option}: has no effect: the model is on the CPU"):
        build(kit, qwen_folder, "single", **{option: True})


@pytest.mark.gpu
@pytest.mark.parametrize("option", ["activation_offload", "reference_offload"])
def test_moving_memory_off_a_gpu_changes_no_number(kit, qwen_folder, option):
    plain = steps(kit, qwen_folder, "single", list(range(8)), precision="fp32")
    moved = steps(kit, qwen_folder, "single", list(range(8)), precision="fp32", **{option: True})
    assert largest(moved[1], plain[1]) <= 1e-6


@pytest.mark.parametrize("is_tied", [True, False])
def test_tensor_ranks_split_the_vocabulary_where_they_divide_it(kit, tmp_path, is_tied):
    folder = kit.folder(tmp_path / "model", vocab_size=98, tie_word_embeddings=is_tied)
    losses, weights, _ = steps(kit, folder, "single", list(range(8)))
    results = on_ranks(lambda rank: steps(kit, folder, "fsdp2", SHARES[4][rank], tensor_parallel=2), 4, tmp_path)
    for found, trained, _ in results:
        assert largest(trained, weights) <= 2e-6
        assert found == [pytest.approx(step, rel=1e-3, abs=2e-5) for step in losses]


LORA = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def alone_with_lora(kit, qwen_folder):
    return steps(kit, qwen_folder, "single", list(range(8)), lora=LORA)


@pytest.mark.parametrize(
    ("use", "options"),
    [
        ("single", {}),
        ("ddp", {"micro_batch_size": 1}),
        ("fsdp2", {}),
        ("fsdp2", {"packing": False, "meta_init": False, "checkpointing": True}),
        ("fsdp2", {"sequence_parallel": 2, "cpu_offload": True}),
        ("deepspeed", {"stage": 2}),
        ("deepspeed", {"stage": 3, "checkpointing": True}),
    ],
)
def test_adapters_learn_on_ranks_as_in_one_process(kit, qwen_folder, tmp_path, alone_with_lora, use, options):
    losses, weights, prints = alone_with_lora
    strategy_of(use)
    results = on_ranks(lambda rank: steps(kit, qwen_folder, use, SHARES[2][rank], lora=LORA, **options), 2, tmp_path)
    for found, trained, own_prints in results:
        assert largest(trained, weights) <= 2e-6
        assert found == [pytest.approx(step, rel=1e-3, abs=2e-5) for step in losses]
        assert own_prints == pytest.approx(prints, rel=1e-4, abs=1e-4)
