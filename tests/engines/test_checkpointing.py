"""Re-entrant checkpoints: the gradients are those without any, under every strategy and whatever is frozen."""

import pytest
import torch
from lightrft_core.sections import CriticSection
from lightrft_engines.training.checkpointing import Checkpointing

from tests.engines.ranks import on_ranks
from tests.engines.test_strategies import LORA, OBJECTIVE, SHARES, batch_of, build, largest, steps, strategy_of

REENTRANT = {"checkpointing": True, "checkpointing_reentrant": True}
TRAINED = {"all weights": {}, "adapters": {"lora": LORA}, "a critic too": {"critic": CriticSection(lr=1e-2, eps=1e-3)}}
ALL_ROWS = list(range(8))


def agree(found, expected):
    losses, weights, _ = expected
    assert largest(found[1], weights) <= 2e-6
    assert found[0] == [pytest.approx(step, rel=1e-3, abs=2e-5) for step in losses]


@pytest.fixture(scope="module")
def alone(kit, qwen_folder):
    """What one process does without any checkpoints."""
    return {name: steps(kit, qwen_folder, "single", ALL_ROWS, **options) for name, options in TRAINED.items()}


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("options", [{}, {"packing": False}, {"micro_batch_size": 1}])
def test_one_process_takes_the_same_steps(kit, qwen_folder, alone, trained, options):
    agree(steps(kit, qwen_folder, "single", ALL_ROWS, **options, **REENTRANT, **TRAINED[trained]), alone[trained])


@pytest.mark.parametrize("lora", [None, {**LORA, "target_modules": ["all-linear"]}])
@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "mistral", "llama"])
def test_so_do_other_models(kit, tmp_path, kind, lora):
    folder = kit.folder(tmp_path / kind, kind)
    agree(*(steps(kit, folder, "single", ALL_ROWS, lora=lora, **options) for options in (REENTRANT, {})))


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize(
    ("use", "options"),
    [
        ("ddp", {"micro_batch_size": 1, "packing": False}),
        ("fsdp2", {"sequence_parallel": 2, "cpu_offload": True}),
        ("fsdp2", {"micro_batch_size": 1, "packing": False, "reshard_after_forward": False}),
        ("deepspeed", {"stage": 1, "sequence_parallel": 2}),
        ("deepspeed", {"stage": 2, "packing": False, "micro_batch_size": 2}),
        ("deepspeed", {"stage": 3, "zpg": 2, "micro_batch_size": 1}),
    ],
)
def test_ranks_take_the_steps_of_one_process(kit, qwen_folder, tmp_path, alone, use, options, trained):
    strategy_of(use)
    options = {**options, **REENTRANT, **TRAINED[trained]}
    for found in on_ranks(lambda rank: steps(kit, qwen_folder, use, SHARES[2][rank], **options), 2, tmp_path):
        agree(found, alone[trained])


def test_tensor_ranks_do_too(kit, qwen_folder, tmp_path, alone):
    options = {**REENTRANT, "tensor_parallel": 2}
    for found in on_ranks(lambda rank: steps(kit, qwen_folder, "fsdp2", SHARES[2][rank], **options), 2, tmp_path):
        agree(found, alone["all weights"])


def test_what_is_computed_again_drops_the_same(kit, qwen_folder):
    lora, norms = {**LORA, "dropout": 0.5}, []
    for options in ({}, REENTRANT):
        strategy, adapter = build(kit, qwen_folder, "single", lora=lora, **options)
        torch.manual_seed(0)
        for seed in (0, 1):
            batch = batch_of(kit, adapter, seed)
            strategy.fill(batch, frozenset({"ref_logprobs"}))
            norms.append(strategy.step(batch, OBJECTIVE).grad_norm)
    assert norms[:2] == pytest.approx(norms[2:], rel=1e-5)


def test_the_option_decides_how_a_block_is_computed_again(kit):
    module, ids = kit.model("qwen2"), torch.arange(6)[None]
    for reentrant in (False, True):
        with Checkpointing(module, True, reentrant=reentrant):
            loss = module(ids, use_cache=False).logits.logsumexp(-1).sum()
            if reentrant:
                with pytest.raises(RuntimeError, match="When use_reentrant=True"):
                    torch.autograd.grad(loss, module.get_input_embeddings().weight)
            else:
                torch.autograd.grad(loss, module.get_input_embeddings().weight)


@pytest.mark.parametrize("reentrant", [False, True])
def test_frozen_embeddings_hand_on_gradients_inside_of_steps_alone(kit, reentrant):
    module, ids = kit.model("qwen2").requires_grad_(False), torch.arange(6)[None]
    embeddings, checkpointing = module.get_input_embeddings(), Checkpointing(module, True, reentrant=reentrant)
    for _ in range(2):
        assert not embeddings(ids).requires_grad
        with pytest.raises(ZeroDivisionError), checkpointing:
            assert embeddings(ids).requires_grad is reentrant
            raise ZeroDivisionError
