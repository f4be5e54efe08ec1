"""The engine's keys and values, as the engine allocates them."""

import pytest
import torch
from lightrft_core.data import Sampling
from lightrft_engines.config import TextConfig
from lightrft_engines.decode.readers import SharedReader
from lightrft_engines.embedded_config import EmbeddedConfig
from lightrft_engines.estimate.courses import forward_peak
from lightrft_engines.estimate.decoding import Load, key_numbers, load_of, reading, writing
from lightrft_engines.estimate.meter import Weightless
from lightrft_engines.estimate.work import Rows
from lightrft_engines.hub import build_model, load_config
from lightrft_engines.training.fsdp2 import shard_units


def weightless(folder):
    config = TextConfig(path=str(folder))
    module = build_model(config, load_config(config))
    return Weightless(module, torch.float32), shard_units(module)[::-1]


@pytest.mark.parametrize("completion", [10, 64, 65, 66, 200])
def test_the_cache_is_as_large_as_that_of_a_real_generation(kit, qwen_folder, completion):
    rows = Rows(num_prompts=3, group_size=4, prompt_tokens=7, completion_tokens=completion)
    module = kit.model("qwen2")
    reader = SharedReader(module, 12, completion, 8192)
    with torch.inference_mode():
        slots, _ = reader.read([(number, *[1] * 6) for number in range(3)])
        reader.join([slot for slot in slots for _ in range(4)])
        for _ in range(completion - 1):
            reader.step(torch.ones(12, dtype=torch.long))
    layers = reader.cache.layers.values()
    real = sum(part.nbytes for layer in layers for part in (layer.keys, layer.values, layer.own_keys, layer.own_values))
    model, blocks = weightless(qwen_folder)
    load = load_of(rows, EmbeddedConfig())
    assert key_numbers(model, len(blocks), shares=True) * load.tokens(shares=True) * 4 == real


def test_rows_beyond_the_limit_wait_and_columns_double_once_more():
    rows = Rows(num_prompts=8, group_size=8, prompt_tokens=5, completion_tokens=64)
    assert load_of(rows, EmbeddedConfig()) == Load(rows=64, prompts=8, prompt_tokens=5, columns=64)
    assert load_of(rows, EmbeddedConfig(max_batch_size=16)) == Load(rows=16, prompts=4, prompt_tokens=5, columns=128)


def test_without_sharing_every_row_has_its_prompt():
    load = Load(rows=8, prompts=2, prompt_tokens=10, columns=20)
    assert (load.tokens(shares=True), load.tokens(shares=False)) == (8 * 20 + 2 * 10, 8 * 30)


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "gemma2"])
def test_keys_are_counted_by_the_config_where_no_plan_is_taken(kit, tmp_path, kind):
    model, blocks = weightless(kit.folder(tmp_path, kind))
    heads = {"qwen2": 2, "gpt2": 4, "gemma2": 2}[kind]
    assert key_numbers(model, len(blocks), shares=False) == 2 * heads * 8 * 2


def test_reading_grows_with_prompts_up_to_the_limit_and_writing_with_rows(qwen_folder):
    def peak(make):
        model, blocks = weightless(qwen_folder)
        return forward_peak(model, blocks, make)

    few, many = Load(4, 2, 16, 8), Load(16, 8, 16, 8)
    read = [peak(reading(load, limit, shares=True)) for load, limit in ((few, 999), (many, 999), (many, 32))]
    assert read[0] == read[2] < read[1]
    sampling = Sampling(max_new_tokens=8, temperature=1.0, top_p=0.9)
    written = [peak(writing(load, sampling, shares=True)) for load in (few, many)]
    assert 3 * written[0] < written[1]
