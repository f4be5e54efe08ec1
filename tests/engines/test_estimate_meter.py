"""What is alive, counted on tensors without memory."""

import torch
from lightrft_engines.estimate.meter import Weightless
from torch import nn


def on_meta(make):
    with torch.device("meta"):
        return make()


def test_views_count_once_and_freed_tensors_no_more():
    model = Weightless(on_meta(lambda: nn.Linear(4, 4)), torch.float32)
    with model.metered() as meter:
        values = torch.zeros(100)
        halves = values.view(2, 50)[0], values[:10]
        assert meter.alive == 400
        other = values + 1
        assert (meter.alive, meter.most) == (800, 800)
        del values, halves
        assert (meter.alive, meter.most) == (400, 800)
        meter.restart()
        assert meter.most == 400
        del other
        assert meter.alive == 0


def test_a_linear_layers_pass_is_as_worked_out_by_hand():
    model = Weightless(on_meta(lambda: nn.Linear(3, 5, bias=False)), torch.float32)
    with model.metered() as meter:
        states = torch.zeros(7, 3, requires_grad=True)
        loss = model.module(states).square().sum()
        assert meter.alive == (7 * 3 + 7 * 5 + 1) * 4  # the input, the output saved by the square, the sum
        loss.backward()
        weight, rows = 5 * 3, 7
        assert meter.alive == (rows * 3 + rows * 3 + weight + 1) * 4  # the input, both gradients, the sum


def test_weights_are_tied_as_they_were_and_count_nothing(kit):
    from transformers import AutoModelForCausalLM

    skeleton = on_meta(lambda: AutoModelForCausalLM.from_config(_config(kit)))
    skeleton.tie_weights()
    model = Weightless(skeleton, torch.bfloat16)
    assert model.module.lm_head.weight is model.module.model.embed_tokens.weight
    assert model.module.lm_head.weight.dtype == torch.bfloat16
    with model.metered() as meter, torch.no_grad():
        assert meter.alive == 0
        model.module(torch.zeros(1, 3, dtype=torch.long), use_cache=False)
        assert meter.most > 0


def test_how_many_places_are_chosen_is_taken_as_all():
    model = Weightless(on_meta(lambda: nn.Linear(2, 2)), torch.float32)
    with model.metered():
        assert (torch.zeros(3, 4) != 0).nonzero().shape == (12, 2)


def _config(kit):
    return kit.model("qwen2", tie_word_embeddings=True).config
