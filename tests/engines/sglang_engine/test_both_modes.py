"""What holds in this process holds in a server, on a real SGLang."""

import time

import pytest

from tests.engines.served_checks import *  # noqa: F403  # each is a test of this engine
from tests.engines.served_trials import same

pytestmark = [pytest.mark.sglang, pytest.mark.slow]


def test_it_writes_what_the_embedded_engine_writes_by_the_same_seeds(trial):
    from lightrft_engines.embedded import EmbeddedEngine
    from lightrft_engines.embedded_config import EmbeddedConfig

    embedded = EmbeddedEngine(EmbeddedConfig(), trial.setup)
    trial.engine.update_weights(trial.strategy.weights, 1)
    for sampling in ({}, {"temperature": 0.7, "top_p": 0.8}, {"top_k": 5, "min_p": 0.1}, {"temperature": 0.0}):
        requests = trial.requests(3, 40, 17, num=8, **sampling)
        assert same(trial.engine.generate(requests), embedded.generate(requests)), sampling


def test_requests_of_different_settings_share_a_batch(trial):
    kinds = ({}, {"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.5, "temperature": 1.3}, {"min_p": 0.2})
    requests = [request for kind in kinds for request in trial.requests(5, num=4, **kind)]
    alone = [trial.engine.generate([request])[0] for request in requests]
    assert same(trial.engine.generate(requests), alone)


def test_a_stop_text_may_be_spelled_by_more_tokens_than_the_tokenizer_would(trial):
    decode = trial.setup.model.decode
    (free,) = trial.engine.generate(trial.requests(6, num=30, max_new_tokens=30))
    text = next(decode(one.token_ids[2:8]) for one in free if len(decode(one.token_ids[2:8])) > 4)
    (ended,) = trial.engine.generate(trial.requests(6, num=30, max_new_tokens=30, stop=(text,)))
    assert any(len(one.token_ids) < len(other.token_ids) for one, other in zip(ended, free, strict=True))
    assert all(text not in decode(one.token_ids[:-1]) for one in ended)


def test_flattened_buckets_by_handles_load_too(trial):
    from lightrft_engines.sglang_engine.transfer import Handles

    if trial.engine._backend._config.mode == "server":
        pytest.skip("handles to a CPU's memory go to this process's own children only; on GPUs they go to servers")
    backend = trial.engine._backend
    trial.change(1.1)
    Handles(backend._call, True, trial.setup.world, backend._config).send(trial.strategy.weights)
    assert trial.wrong() == []
    trial.engine.reset_cache()
    assert trial.gap() < 1e-4


def test_flattened_buckets_by_a_process_group_load_too(trial):
    from lightrft_engines.sglang_engine.transfer import Broadcast

    backend = trial.engine._backend
    call = backend._call if backend._config.mode == "colocated" else backend._client.post_to
    way = Broadcast(call, trial.setup.world, backend._config, "127.0.0.1", "gloo")
    for factor in (0.95, 1.02):
        trial.change(factor)
        way.send(trial.strategy.weights)
        assert trial.wrong() == []
    way.close()
    trial.engine.reset_cache()
    assert trial.gap() < 1e-4


def test_past_its_time_limit_completions_come_back_as_they_are(trial):
    backend = trial.engine._backend
    own = backend._config  # another start would take half a minute
    backend._config = own.model_copy(update={"time_limit": 2.0})
    try:
        begun = time.monotonic()
        (group,) = trial.engine.generate(trial.requests(3, num=1500, max_new_tokens=200, temperature=2.0))
    finally:
        backend._config = own
    assert time.monotonic() - begun < 60
    aborted = [one for one in group if one.finish_reason == "abort"]
    assert len(group) == 1500 and any(one.token_ids for one in aborted)
    assert all(len(one.token_ids) == len(one.logprobs) for one in aborted)
    assert trial.gap() < 1e-4
