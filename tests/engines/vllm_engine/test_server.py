"""vLLM as a server: the same completions as in this process, time limits, and what happens when it dies."""

import os
import signal
import socket
import time

import pytest
from lightrft_core.errors import RunFailed, UserError

from tests.engines.served_trials import refusing, same

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def attached(server, start):
    trial = start(mode="server", url=server.engine._backend._client.url, time_limit=0.5)
    server.engine.update_weights(server.strategy.weights, 1)  # the other has brought its own
    return trial


def test_it_writes_what_a_colocated_engine_writes(server, colocated):
    colocated.engine.update_weights(server.strategy.weights, 1)
    server.engine.update_weights(server.strategy.weights, 1)
    requests = server.requests()
    assert same(server.engine.generate(requests), colocated.engine.generate(requests))
    colocated.engine.update_weights(colocated.strategy.weights, 1)


def test_past_its_time_limit_completions_come_back_as_they_are(attached, server):
    begun = time.monotonic()
    (group,) = attached.engine.generate(attached.requests(3, num=2000, max_new_tokens=200, temperature=2.0))
    assert time.monotonic() - begun < 40
    aborted = [one for one in group if one.finish_reason == "abort"]
    assert len(group) == 2000 and any(one.token_ids for one in aborted)
    assert all(len(one.token_ids) == len(one.logprobs) for one in aborted)
    assert server.gap() < 1e-4  # others' requests are not disturbed


def test_a_port_in_use_says_so(start):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 is in use") as caught:
            start(mode="server", port=port)
    assert caught.value.where == "engine.port" and "engine.url" in caught.value.hint


def test_a_server_that_takes_no_weights_says_how_to_start_it(start):
    with refusing(404) as url, pytest.raises(UserError, match="does not take weights") as caught:
        start(mode="server", url=url)
    assert caught.value.where == "engine.url"
    assert "--worker-extension-cls lightrft_engines.vllm_engine.worker.Worker" in caught.value.hint


def test_a_server_that_cannot_start_says_what_to_change(start):
    with pytest.raises(UserError, match="max_model_len") as caught:
        start(mode="server", max_model_len=9999)
    assert caught.value.where == "engine.max_model_len"


def test_a_killed_server_is_a_named_failure_or_starts_anew_with_the_trained_weights(server, attached):
    server.change(1.1)
    server.engine.update_weights(server.strategy.weights, 7)
    expected = server.engine.generate(server.requests())
    os.killpg(server.engine._backend.process.pid, signal.SIGKILL)
    begun = time.monotonic()
    with pytest.raises(RunFailed, match="the engine server does not answer") as caught:
        attached.engine.generate(attached.requests())
    assert time.monotonic() - begun < 30
    assert caught.value.where == "engine"
    assert same(server.engine.generate(server.requests()), expected)
    assert server.wrong() == []
    assert server.engine.version == 7
