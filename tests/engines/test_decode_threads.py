"""Steps of short products run on one thread; whatever else runs has all of them again."""

import pytest
import torch
from lightrft_core.data import GenerateRequest, Sampling
from lightrft_engines.decode import threads
from lightrft_engines.decode.decoder import Decoder
from lightrft_engines.decode.rounded import rounded_twin
from lightrft_engines.decode.threads import SMALLEST, StepThreads
from torch import nn


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def seen_threads(model):
    """The threads that a layer of the model had, at each call from now on."""
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    return seen


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])  # with prompts shared, and by transformers' cache
def test_short_steps_run_on_one_thread_and_prompts_on_all(kit, family):
    decoder = Decoder(kit.model(family))
    seen = seen_threads(decoder.module)
    decoder.generate([GenerateRequest("p", (5, 6, 7), (0, 1), Sampling(max_new_tokens=4))])
    assert seen == [2, 1, 1, 1]
    assert torch.get_num_threads() == 2


def test_the_caller_of_a_stream_has_all_threads_between_steps(kit):
    request = GenerateRequest("p", (5, 6, 7), (0,), Sampling(max_new_tokens=4))
    assert [torch.get_num_threads() for _ in Decoder(kit.model("qwen2")).stream([request])] == [2, 2, 2, 2]


def test_steps_of_long_products_run_on_all_threads(kit, monkeypatch):
    decoder = Decoder(kit.model("qwen2"))
    monkeypatch.setattr(threads, "SMALLEST", 1)
    seen = seen_threads(decoder.module)
    decoder.generate([GenerateRequest("p", (5, 6, 7), (0,), Sampling(max_new_tokens=3))])
    assert seen == [2, 2, 2]


def test_an_error_gives_the_threads_back(kit):
    with pytest.raises(KeyError), StepThreads(kit.model("qwen2")).for_rows(1):
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 2


def test_the_mean_product_decides():
    steps = StepThreads(nn.Sequential(nn.Linear(1024, 2048), nn.Linear(2048, 1024)))
    limit = SMALLEST // (1024 * 2048)
    assert steps.suffices_one(limit - 1)
    assert not steps.suffices_one(limit)


def test_embeddings_are_no_products():
    embedding, layer = nn.Embedding(65536, 1024), nn.Linear(64, 64)
    assert StepThreads(nn.Sequential(embedding, layer)).suffices_one(SMALLEST // 64**2 - 1)


def test_int8_layers_count_as_their_originals(kit):
    model = kit.model("qwen2")
    twin, _ = rounded_twin(model)
    limits = [[StepThreads(module).suffices_one(num) for num in range(1, SMALLEST, 997)] for module in (model, twin)]
    assert limits[0] == limits[1]
    assert len(set(limits[0])) == 2
