"""vLLM in this process: the conformance kit, time limits, and options that this machine leaves without effect."""

import random
import time

import pytest
import torch
from lightrft_core.errors import UserError
from lightrft_core.plugins import Plugins
from lightrft_core.testing import check_component

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_the_conformance_kit_finds_nothing(colocated):
    plugins = Plugins.load()
    component = plugins.find("engine", "vllm", where="test")
    results = check_component("engine", component, plugins, setup=colocated.setup)
    assert [result for result in results if not result.ok or result.is_skipped] == []


def test_tied_embeddings_and_a_padded_vocabulary_are_served_as_trained(start, quickstart_model):
    trial = start(quickstart_model, bucket_mb=1)
    assert trial.wrong() == []
    assert trial.gap() < 1e-4


def test_past_its_time_limit_completions_come_back_as_they_are(start):
    trial = start(time_limit=0.5)
    begun = time.monotonic()
    (group,) = trial.engine.generate(trial.requests(3, num=1500, max_new_tokens=200, temperature=2.0))
    assert time.monotonic() - begun < 20
    aborted = [one for one in group if one.finish_reason == "abort"]
    assert len(group) == 1500 and aborted
    assert any(one.token_ids for one in aborted)
    assert all(len(one.token_ids) == len(one.logprobs) < 200 for one in aborted)
    (after,) = trial.engine.generate(trial.requests(3, num=2, max_new_tokens=2))
    assert [len(one.token_ids) for one in after] == [2, 2]


def test_starting_leaves_random_numbers_and_threads_alone(colocated):
    from lightrft_engines.vllm_engine.config import VllmConfig
    from lightrft_engines.vllm_engine.engine import open_engine

    set_threads = torch.set_num_threads
    states = random.getstate(), torch.get_rng_state()
    open_engine(VllmConfig(), colocated.setup).close()
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert torch.set_num_threads is set_threads


def test_limits_of_images_are_refused_where_the_model_reads_text_only(start):
    with pytest.raises(UserError, match="the model reads text only") as caught:
        start(max_images=2)
    assert caught.value.where == "engine.max_images"


def test_a_context_beyond_the_models_names_the_option(start):
    with pytest.raises(UserError, match=r"max_model_len \(9999\) is greater") as caught:
        start(max_model_len=9999)
    assert caught.value.where == "engine.max_model_len"


def test_too_little_memory_for_keys_and_values_names_what_to_change(start):
    with pytest.raises(UserError, match="vLLM could not start") as caught:
        start(kv_cache_gb=1e-5)
    assert caught.value.where == "engine.max_model_len"
    assert "engine.kv_cache_gb" in caught.value.hint
