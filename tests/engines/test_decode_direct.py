"""A directly called twin computes what its module does, with the module's tensors, hooks and patches."""

import pytest
import torch
from lightrft_engines.decode.direct import direct_twin

IDS = torch.tensor([[5, 3, 8, 1, 7]])


def logits(module):
    with torch.inference_mode():
        return module(IDS, use_cache=False).logits


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2", "gemma2", "qwen3_moe"])
def test_the_twin_computes_the_same_and_follows_weights_that_change_in_place(kit, family):
    model = kit.model(family)
    twin = direct_twin(model)
    assert torch.equal(logits(twin), logits(model))
    before = logits(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert torch.equal(logits(twin), logits(model))
    assert not torch.equal(logits(twin), before)


def test_the_twin_evaluates_and_leaves_the_module_as_it_is(kit):
    model = kit.model("qwen2").train()
    classes = [type(part) for part in model.modules()]
    twin = direct_twin(model)
    assert not any(part.training for part in twin.modules())
    assert all(part.training for part in model.modules())
    assert [type(part) for part in model.modules()] == classes
    assert "q_proj" not in vars(model.model.layers[0].self_attn)
    assert [id(value) for value in twin.parameters()] == [id(value) for value in model.parameters()]


def test_hooks_and_patched_forwards_are_called(kit):
    model = kit.model("qwen2")
    seen = []
    model.model.layers[0].mlp.register_forward_hook(lambda *_: seen.append("hook"))
    patched = model.model.layers[1].mlp
    forward = patched.forward
    patched.forward = lambda *inputs: (seen.append("patch"), forward(*inputs))[1]
    logits(direct_twin(model))
    assert seen == ["hook", "patch"]
