"""Linear layers of 8 bits: near what was rounded, apart from the module they were taken from, and taken anew."""

import logging

import pytest
import torch
from lightrft_core.data import GenerateRequest, Sampling
from lightrft_engines.config import TextConfig
from lightrft_engines.decode.rounded import RoundedLinear, rounded, rounded_twin
from lightrft_engines.embedded import EmbeddedEngine
from lightrft_engines.embedded_config import EmbeddedConfig
from lightrft_engines.text import TextAdapter
from lightrft_engines.training.config import SingleConfig
from lightrft_engines.training.single import SingleStrategy
from torch import nn

REQUEST = GenerateRequest("p", (5, 9, 2), (1, 2, 3), Sampling(8))


@pytest.fixture
def adapter(kit, qwen_folder):
    return TextAdapter(TextConfig(path=str(qwen_folder)), kit.setup(qwen_folder))


@pytest.fixture
def strategy(kit, qwen_folder, adapter):
    return SingleStrategy(SingleConfig(device="cpu"), kit.setup(qwen_folder, model=adapter))


def engine_for(kit, folder, adapter, strategy=None, **parts):
    setup = kit.setup(folder, model=adapter, strategy=strategy, **parts)
    return EmbeddedEngine(EmbeddedConfig(quantization="int8"), setup)


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_computes_the_product_of_what_was_rounded(rows, bias):
    torch.manual_seed(0)
    layer, inputs = nn.Linear(40, 24, bias=bias).requires_grad_(False), torch.randn(rows, 1, 40)
    expected = torch.zeros(rows, 1, 24)
    for row in range(rows):
        step = float(inputs[row].abs().max()) / 127
        whole = torch.tensor([round(float(value) / step) for value in inputs[row, 0]], dtype=torch.float64)
        for out in range(24):
            grain = float(layer.weight[out].abs().max()) / 127
            weights = torch.tensor([round(float(value) / grain) for value in layer.weight[out]], dtype=torch.float64)
            expected[row, 0, out] = float(whole @ weights) * step * grain + (float(layer.bias[out]) if bias else 0)
    with torch.no_grad():
        assert torch.allclose(RoundedLinear(layer)(inputs), expected, atol=1e-5)
        assert torch.allclose(RoundedLinear(layer)(inputs), layer(inputs), atol=0.03)


def test_a_row_of_zeros_stays_zero():
    values, scales = rounded(torch.zeros(2, 8))
    assert values.count_nonzero() == 0
    assert scales.isfinite().all()


def test_the_twin_shares_all_but_linear_layers_and_leaves_the_head_whole(kit):
    model = kit.model("qwen2")
    twin, layers = rounded_twin(model)
    assert twin.lm_head.weight is model.lm_head.weight
    assert twin.model.embed_tokens.weight is model.model.embed_tokens.weight
    assert twin.model.layers[0].self_attn.q_proj.bias is model.model.layers[0].self_attn.q_proj.bias
    assert len(layers) == 7 * len(model.model.layers)
    assert all(layer.weight_NK.dtype == torch.int8 for layer in layers.values())
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear


def test_logprobs_of_what_it_writes_are_near_the_trainers(kit, qwen_folder, adapter, strategy):
    engine = engine_for(kit, qwen_folder, adapter, strategy)
    for completion in engine.generate([REQUEST])[0]:
        tokens = torch.tensor([REQUEST.prompt_token_ids + completion.token_ids])
        with torch.no_grad():
            logp = strategy.policy(tokens).logits[0, 2:-1].log_softmax(-1)
        trained = logp.gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        gap = (torch.tensor(completion.logprobs) - trained).abs()
        assert 0 < float(gap.max()) < 0.1


@pytest.mark.parametrize("is_in_place", [True, False])
def test_a_sync_rounds_anew_and_the_fingerprint_is_of_what_was_rounded(
    kit, qwen_folder, adapter, strategy, is_in_place
):
    engine = engine_for(kit, qwen_folder, adapter, strategy if is_in_place else None)
    names = tuple(strategy.fingerprint())
    before, old = engine.generate([REQUEST]), engine.fingerprint(names)
    assert old == strategy.fingerprint()
    with torch.no_grad():
        for parameter in strategy.policy.parameters():
            parameter.mul_(1.3)
    stale = [name for name in names if engine.fingerprint(names)[name] != strategy.fingerprint()[name]]
    assert any("mlp" in name for name in stale)  # not rounded yet, and it shows
    engine.update_weights(strategy.weights, 1)
    assert engine.fingerprint(names) == strategy.fingerprint() != old
    assert engine.generate([REQUEST]) == engine_for(kit, qwen_folder, adapter, strategy).generate([REQUEST]) != before


def test_its_own_copy_keeps_no_whole_weights(kit, qwen_folder, adapter):
    engine = engine_for(kit, qwen_folder, adapter)
    assert not [name for name, _ in engine.module.named_parameters() if "proj.weight" in name]


@pytest.mark.parametrize("needs", [frozenset(), frozenset({"old_logprobs"})])
def test_a_correction_is_advised(kit, qwen_folder, adapter, caplog, needs):
    with caplog.at_level(logging.WARNING):
        engine_for(kit, qwen_folder, adapter, needs=needs)
    assert ("without a correction" in caplog.text) is not bool(needs)
