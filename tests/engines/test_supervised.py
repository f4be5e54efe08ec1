"""Supervised examples beside the policy loss: their gradient, for one step alone, whatever the cut."""

from dataclasses import replace

import pytest
import torch
from lightrft_core.data import LossOutput
from lightrft_core.objective import Objective
from lightrft_core.sections import OptimSection
from lightrft_engines.config import TextConfig
from lightrft_engines.text import TextAdapter
from lightrft_engines.training.config import SingleConfig
from lightrft_engines.training.single import SingleStrategy
from transformers import AutoModelForCausalLM

from tests.engines.test_ranks import on_ranks

OBJECTIVE = Objective(lambda inputs: LossOutput(-inputs.logprobs_BT * inputs.advantages_BT))
OPTIM = OptimSection(lr=1e-2, eps=1e-3, max_grad_norm=0)


def make(kit, folder, **options) -> SingleStrategy:
    setup = kit.setup(folder, optim=OPTIM)
    setup.model = TextAdapter(TextConfig(path=str(folder)), setup)
    return SingleStrategy(SingleConfig(**options), setup)


def batches(kit, folder):
    """What the policy learns from, without any advantage, and examples."""
    adapter = TextAdapter(TextConfig(path=str(folder)), kit.setup(folder))
    batch, examples = adapter.collate(kit.groups(0)), adapter.collate(kit.groups(7))
    batch.advantages_BT = torch.zeros(batch.mask_BT.shape)
    return batch, replace(examples, temperature=1.0)


def weights(strategy):
    return {name: tensor.clone() for name, tensor in strategy.weights()}


def distance(found, expected):
    return max(float((found[name] - expected[name]).detach().abs().max()) for name in expected)


def test_the_gradient_is_that_of_the_mean_over_their_tokens(kit, qwen_folder):
    strategy = make(kit, qwen_folder)
    batch, examples = batches(kit, qwen_folder)
    model = AutoModelForCausalLM.from_pretrained(qwen_folder)
    loss, num = 0.0, int(examples.mask_BT.sum())
    for row, prompt in enumerate(examples.prompt_token_ids):
        length = int(examples.lengths_B[row])
        ids = torch.tensor([[*prompt, *examples.completion_ids_BT[row, :length].tolist()]])
        logp = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        loss = loss - logp.gather(-1, ids[0, len(prompt) :, None]).sum() / num
    (0.3 * loss).backward()
    norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    strategy.mix_in(examples, 0.3)
    stats = strategy.step(batch, OBJECTIVE)
    assert stats.grad_norm == pytest.approx(float(norm), rel=1e-4)
    assert stats.metrics["ptx_loss"] == (pytest.approx(float(loss.detach()), rel=1e-5), pytest.approx(1.0))
    torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-3, weight_decay=0).step()
    assert distance(weights(strategy), dict(model.named_parameters())) <= 1e-5


@pytest.mark.parametrize("options", [{"micro_batch_size": 1}, {"packing": False}, {"max_tokens_per_micro_batch": 16}])
def test_the_update_does_not_depend_on_the_cut(kit, qwen_folder, options):
    batch, examples = batches(kit, qwen_folder)
    whole, cut = make(kit, qwen_folder), make(kit, qwen_folder, **options)
    for strategy in (whole, cut):
        strategy.mix_in(examples, 0.3)
        strategy.step(batch, OBJECTIVE)
    assert distance(weights(cut), weights(whole)) <= 1e-6


def test_they_count_for_one_step_alone(kit, qwen_folder):
    batch, examples = batches(kit, qwen_folder)
    strategy = make(kit, qwen_folder)
    strategy.mix_in(examples, 0.3)
    assert "ptx_loss" in strategy.step(batch, OBJECTIVE).metrics
    after = strategy.step(batch, OBJECTIVE)
    assert "ptx_loss" not in after.metrics and after.grad_norm == 0


def update(kit, folder, rows):
    strategy, (batch, examples) = make(kit, folder), batches(kit, folder)
    strategy.mix_in(examples.rows(rows), 0.3)
    stats = strategy.step(batch.rows(rows), OBJECTIVE)
    return {name: tensor.tolist() for name, tensor in strategy.weights()}, stats.metrics["ptx_loss"]


def test_two_ranks_make_the_update_of_one(kit, qwen_folder, tmp_path):
    values, loss = update(kit, qwen_folder, list(range(8)))
    shares = ([0, 1, 2, 5, 7, 3, 4, 6], [])
    first, second = on_ranks(lambda rank: update(kit, qwen_folder, shares[rank]), 2, tmp_path)
    assert first == second
    assert first[1] == (pytest.approx(loss[0], rel=1e-5), pytest.approx(loss[1]))
    for name, expected in values.items():
        assert float((torch.tensor(first[0][name]) - torch.tensor(expected)).abs().max()) <= 1e-6, name
