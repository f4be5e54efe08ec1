"""SGLang as a server: attaching to it, and servers that are not what we need."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from lightrft_core.errors import RunFailed, UserError

pytestmark = [pytest.mark.sglang, pytest.mark.slow]


def test_an_attached_engine_syncs_and_proves_too(server, start):
    attached = start(mode="server", url=server.engine._backend._client.url)
    attached.change(1.05)
    assert attached.wrong() == attached.names()
    attached.engine.update_weights(attached.strategy.weights, 3)
    assert attached.wrong() == []
    assert attached.gap(attached.requests(5, num=2)) < 1e-4
    server.engine.update_weights(server.strategy.weights, 1)
    assert server.wrong() == []


def test_it_listens_on_this_machine_only(server):
    assert server.engine._backend._client.is_loopback


def test_what_is_no_server_does_not_answer(start):
    with pytest.raises(RunFailed, match="Connection refused"):
        start(mode="server", url="http://127.0.0.1:9")


def test_a_server_without_our_schedulers_says_how_to_start_it(start):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_error(400)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="has none of LightRFT's schedulers") as caught:
            start(mode="server", url=f"http://127.0.0.1:{other.server_port}")
        other.shutdown()
    assert caught.value.where == "engine.url"
    assert "python -m lightrft_engines.sglang_engine.serve" in caught.value.hint
