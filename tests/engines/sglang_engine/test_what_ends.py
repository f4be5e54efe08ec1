"""What is lost is named, at once; a server may start anew. Last, because nothing shared survives it."""

import os
import signal
import time
from pathlib import Path

import pytest
from lightrft_core.errors import RunFailed, UserError
from lightrft_core.plugins import Plugins
from lightrft_core.testing import check_component

from tests.engines.served_trials import same

pytestmark = [pytest.mark.sglang, pytest.mark.slow]


def test_a_killed_server_starts_anew_with_the_trained_weights(server):
    server.change(1.1)
    server.engine.update_weights(server.strategy.weights, 7)
    expected = server.engine.generate(server.requests())
    os.killpg(server.engine._backend.process.pid, signal.SIGKILL)
    assert same(server.engine.generate(server.requests()), expected)
    assert server.wrong() == []
    assert server.engine.version == 7


def test_a_killed_server_is_a_named_failure_where_it_may_not_start_anew(server):
    backend = server.engine._backend
    backend._config = backend._config.model_copy(update={"restart": False})
    os.killpg(backend.process.pid, signal.SIGKILL)
    begun = time.monotonic()
    with pytest.raises(RunFailed, match=r"the engine server (died|does not answer)") as caught:
        server.engine.generate(server.requests())
    assert time.monotonic() - begun < 30
    assert caught.value.where == "engine" and "sglang.log" in caught.value.hint


def test_a_killed_scheduler_is_a_named_failure_and_this_process_goes_on_without_its_memory(colocated):
    inside = colocated.engine._backend._inside
    loads = Path(inside._engine.tokenizer_manager.load_snapshot_reader.path)
    assert loads.exists()
    os.kill(inside._children[0].pid, signal.SIGKILL)
    begun = time.monotonic()
    with pytest.raises(RunFailed, match="a process of the engine ended with status -9") as caught:
        colocated.engine.generate(colocated.requests())
    assert time.monotonic() - begun < 30
    assert caught.value.where == "engine" and "sglang.log" in caught.value.hint
    colocated.engine.close()
    assert not any(child.is_alive() for child in inside._children)
    assert not loads.exists()


def test_a_context_beyond_the_models_names_the_option(start):
    with pytest.raises(UserError, match=r"SGLang could not start: .*9999") as caught:
        start(max_model_len=9999)
    assert caught.value.where == "engine.max_model_len"


def test_another_starts_in_the_same_process_and_the_conformance_kit_finds_nothing(colocated):
    plugins = Plugins.load()
    component = plugins.find("engine", "sglang", where="test")
    results = check_component("engine", component, plugins, setup=colocated.setup)
    assert [result for result in results if not result.ok or result.is_skipped] == []
