"""Compiled and recorded steps write what plain ones do; compiled ones see weights that change in place."""

import math

import pytest
import torch
from lightrft_core.data import GenerateRequest, Sampling
from lightrft_core.errors import EnvironmentUnfit, UserError
from lightrft_engines.config import TextConfig
from lightrft_engines.decode.decoder import Decoder
from lightrft_engines.embedded import EmbeddedEngine
from lightrft_engines.embedded_config import EmbeddedConfig
from lightrft_engines.text import TextAdapter
from lightrft_engines.training.config import SingleConfig
from lightrft_engines.training.single import SingleStrategy


def requests(sampling, lengths=(3, 12, 12, 5), group=3):
    generator = torch.Generator().manual_seed(1)
    texts = [tuple(torch.randint(1, 97, (length,), generator=generator).tolist()) for length in lengths]
    return [
        GenerateRequest(f"p{index}", ids, tuple(range(50 * index, 50 * index + group)), sampling)
        for index, ids in enumerate(texts)
    ]


@pytest.mark.slow
def test_compiled_completions_equal_plain_ones_while_rows_leave_and_weights_change(kit):
    model = kit.model("qwen2")
    plain, compiled = Decoder(model, [0, 1, 2, 3, 4, 5]), Decoder(model, [0, 1, 2, 3, 4, 5])
    compiled.compile()
    for sampling in (Sampling(24, temperature=0), Sampling(24)):
        wanted, written = plain.generate(requests(sampling)), compiled.generate(requests(sampling))
        tokens = [[[one.token_ids for one in group] for group in groups] for groups in (wanted, written)]
        assert tokens[0] == tokens[1]
        with torch.no_grad():
            model.lm_head.weight.mul_(-1)
            model.model.layers[0].mlp.down_proj.weight.mul_(1.5)


@pytest.mark.parametrize("option", ["compile", "cuda_graphs"])
def test_ways_to_run_a_step_are_refused_where_the_model_takes_no_plans(kit, option):
    decoder = Decoder(kit.model("gemma2"))
    with pytest.raises(UserError, match=rf"engine\.{option}: has no effect: this model's attention") as caught:
        {"compile": decoder.compile, "cuda_graphs": decoder.record}[option]()
    assert caught.value.hint == "Leave it out."


def compared(model, sampling, *, max_rows, lengths=(3, 12, 12, 5, 30, 1, 2, 17, 6), group=5):
    """Tokens by a plain and by a static step, and the largest difference between their log-probabilities."""
    plain, static = (Decoder(model, range(6), max_batch_size=max_rows) for _ in range(2))
    static.record()
    asked = requests(sampling, lengths, group)
    wanted, written = plain.generate(asked), static.generate(asked)
    pairs = [pair for both in zip(wanted, written, strict=True) for pair in zip(*both, strict=True)]
    gaps = [abs(a - b) for one, two in pairs for a, b in zip(one.logprobs, two.logprobs, strict=True)]
    return [one.token_ids for one, _ in pairs], [two.token_ids for _, two in pairs], max(gaps)


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2"])
@pytest.mark.parametrize("max_rows", [1, 6, 13, 256])
def test_a_static_step_writes_what_a_plain_one_does_while_rows_come_and_go(kit, family, max_rows):
    wanted, written, gap = compared(kit.model(family), Sampling(90), max_rows=max_rows)
    assert wanted == written
    assert gap < 1e-4
    assert len({len(tokens) for tokens in wanted}) > 5


def test_memory_that_was_never_written_does_not_reach_a_static_step(kit, monkeypatch):
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *shape: empty(self, *shape).fill_(math.nan))
    wanted, written, _ = compared(kit.model("qwen2"), Sampling(80), max_rows=6)
    assert wanted == written


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_recorded_completions_equal_plain_ones(kit, temperature):
    model = kit.model("qwen2").cuda()
    for max_rows in (6, 256):
        wanted, written, gap = compared(model, Sampling(90, temperature), max_rows=max_rows)
        assert wanted == written
        assert gap < 1e-3


def test_recording_is_refused_without_a_gpu(kit, qwen_folder):
    adapter = TextAdapter(TextConfig(path=str(qwen_folder)), kit.setup(qwen_folder))
    strategy = SingleStrategy(SingleConfig(device="cpu"), kit.setup(qwen_folder, model=adapter))
    with pytest.raises(UserError, match=r"engine\.cuda_graphs: works where the model is on cuda, and it is on cpu"):
        EmbeddedEngine(EmbeddedConfig(cuda_graphs=True), kit.setup(qwen_folder, model=adapter, strategy=strategy))


def test_compiling_without_a_compiler_is_refused_at_the_start(kit, monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(EnvironmentUnfit, match=r"engine\.compile: torch\.compile needs a C\+\+ compiler") as caught:
        Decoder(kit.model("qwen2")).compile()
    assert "g++" in caught.value.hint
