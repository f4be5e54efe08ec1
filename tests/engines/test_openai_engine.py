"""The engine that asks a server: against LightRFT's own with a toy model, and one that answers as it is told to."""

import json
import logging
import math
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from lightrft_core.data import GenerateRequest, Media, Sampling
from lightrft_core.errors import LightRFTError, RunFailed, UserError
from lightrft_core.model_choice import Limits
from lightrft_core.serving.api import Api, Served
from lightrft_core.serving.desk import Desk
from lightrft_core.serving.listener import Listener
from lightrft_core.testing.conformance import check_component
from lightrft_core.testing.results import SKIPPED
from lightrft_core.testing.toys import ToyEngine, ToyEngineConfig, toy_setup
from lightrft_engines.openai_engine import caller
from lightrft_engines.openai_engine.config import OpenaiConfig
from lightrft_engines.openai_engine.engine import OpenaiEngine
from pydantic import ValidationError

KEY = "sk-never-shown"
REQUESTS = [
    GenerateRequest("a", (1,), (5, 6, 7), Sampling(3, stop_token_ids=(10,))),
    GenerateRequest("b", (2, 3), (8,), Sampling(2, temperature=0.5, stop_token_ids=(10,))),
]


class Slow(ToyEngine):
    """Answers requests for one token, and others when it is released."""

    released = threading.Event()

    def generate(self, requests):
        if any(request.sampling.max_new_tokens > 1 for request in requests):
            self.released.wait(20)
        return super().generate(requests)


@contextmanager
def served(setup, engine=ToyEngine, key=None):
    """LightRFT's server in this process; its address."""
    Slow.released = threading.Event()
    desk = Desk(engine(ToyEngineConfig(), setup))
    working = threading.Thread(target=desk.run)
    working.start()
    with Listener("127.0.0.1", 0, Api(Served("toy", setup.require_model(), 3, Limits(11)), desk), key) as listener:
        thread = threading.Thread(target=listener.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield listener.url
        finally:
            Slow.released.set()
            listener.shutdown()
            desk.close()
            thread.join()
            working.join()


class Told(BaseHTTPRequestHandler):
    """Takes text only; statuses in `server.script` come before its answers."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._send(*self.server.models)

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "return_token_ids" in body:
            self._send(400, {"error": {"message": "unknown field return_token_ids"}})
            return
        with server.lock:
            server.open += 1
            server.most = max(server.most, server.open)
            server.bodies.append(body)
            status = server.script.pop(0) if server.script else 200
        if server.slow:
            server.released.wait(0.05)
        if status == 0:
            self.connection.shutdown(socket.SHUT_RDWR)
        elif status != 200:
            self._send(status, {"error": {"message": f"no, {self.headers['Authorization']}."}}, {"Retry-After": "0"})
        else:
            self._send(200, {"choices": [{"text": "45", "finish_reason": server.reason, "logprobs": None}]})
        with server.lock:
            server.open -= 1

    def _send(self, status, content, headers=()):
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **dict(headers),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setattr(caller, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("MY_KEY", KEY)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Told)
    server.daemon_threads, server.lock, server.released = True, threading.Lock(), threading.Event()
    server.script, server.bodies, server.reason, server.open, server.most, server.slow = [], [], "stop", 0, 0, False
    server.models = (200, {"data": [{"id": "big"}]})
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def setup(tmp_path):
    return toy_setup(tmp_path)


def engine_at(url, setup, **options):
    return OpenaiEngine(OpenaiConfig(url=url, **options), setup)


def test_it_keeps_an_engines_promises_and_refuses_weights(setup, plugins):
    component = plugins.find("engine", "openai", where="test")
    with served(setup) as url:
        results = check_component("engine", component, plugins, options={"url": url}, setup=setup)
    assert not [result for result in results if not result.ok]
    assert not [result for result in results if result.detail.startswith(SKIPPED)]


def test_ids_and_log_probabilities_are_those_of_the_engine_behind_the_server(setup):
    with served(setup) as url:
        engine = engine_at(url + "/v1/", setup)
        assert engine.speaks_token_ids
        assert engine.generate(REQUESTS) == ToyEngine(ToyEngineConfig(), setup).generate(REQUESTS)
        engine.close()


def test_what_is_late_comes_back_empty_and_aborted(setup):
    with served(setup, Slow) as url:
        engine = engine_at(url, setup, time_limit=0.2)
        completions = engine.generate(REQUESTS)
        engine.close()
    assert [[item.finish_reason for item in items] for items in completions] == [["abort"] * 3, ["abort"]]
    assert completions[0][0].token_ids == ()


def test_a_missing_or_wrong_key_names_the_option_and_never_the_key(setup, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("EMPTY", " ")
    monkeypatch.setenv("TWO_LINES", f"{KEY}\nand more")
    with served(setup, key="another") as url:
        for options, words in (
            ({}, "the server asks for a key (401). Name the environment variable"),
            ({"api_key_env": "MY_KEY"}, "the server does not take the key in MY_KEY (401)."),
            ({"api_key_env": "EMPTY"}, "the variable EMPTY holds no key."),
            ({"api_key_env": "TWO_LINES"}, "the key is no line of plain text."),
        ):
            with pytest.raises(UserError) as caught:
                engine_at(url, setup, **options)
            assert caught.value.where == "engine.api_key_env"
            assert words in str(caught.value)
            assert KEY not in str(caught.value)


def test_the_right_key_is_sent(setup, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with served(setup, key=KEY) as url:
        engine_at(url, setup, api_key_env="MY_KEY").close()


def test_a_wrong_address_or_model_is_told_at_once(told, setup):
    with pytest.raises(UserError, match=r"engine\.url: nothing answers"):
        engine_at("http://127.0.0.1:9", setup)
    with pytest.raises(UserError, match=r"engine\.model: .* has no model 'bigg'\. Did you mean 'big'\?.* It has big\."):
        engine_at(told.url, setup, model="bigg")
    told.models = (200, {"data": [{"id": "big"}, {"id": "small"}]})
    with pytest.raises(UserError, match=r"engine\.model: .* has 2 models\. Name one\. It has big, small\."):
        engine_at(told.url, setup)
    told.models = (404, {"error": "no such page"})
    with pytest.raises(UserError, match=r"engine\.url: .* answers 404: no such page\. Give the address before /v1"):
        engine_at(told.url, setup)
    told.models = (200, {"hello": 1})
    with pytest.raises(UserError, match=r"engine\.url: .* is another kind of server\."):
        engine_at(told.url, setup)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a", "http://", "http://a/v1?x=1", "http://me:word@a"])
def test_what_is_no_address_is_no_option(url):
    with pytest.raises(ValidationError):
        OpenaiConfig(url=url)


def test_a_server_of_text_gets_text_and_what_that_loses_is_said(told, setup, caplog):
    with caplog.at_level(logging.WARNING):
        engine = engine_at(told.url, setup, model="big")
    assert "takes no token ids" in caplog.text
    assert not engine.speaks_token_ids
    (completion,) = engine.generate(REQUESTS[1:])[0]
    assert (completion.token_ids, completion.finish_reason) == ((4, 5), "stop")
    assert all(math.isnan(value) for value in completion.logprobs)
    sent = told.bodies[-1]
    assert sent == {
        "model": "big", "prompt": "23", "n": 1, "seed": 8, "max_tokens": 2, "temperature": 0.5, "top_p": 1.0
    }  # fmt: skip
    with pytest.raises(UserError, match=r"sampler\.top_k: has no effect"):
        engine.generate([GenerateRequest("c", (1,), (1,), Sampling(2, top_k=5))])
    engine.close()


def test_a_reason_to_stop_that_means_refused_is_an_abort(told, setup):
    told.reason = "content_filter"
    engine = engine_at(told.url, setup)
    assert engine.generate(REQUESTS[1:])[0][0].finish_reason == "abort"
    engine.close()


@pytest.mark.parametrize("status", [429, 500, 503, 0])
def test_what_passes_is_asked_again(told, setup, status):
    engine = engine_at(told.url, setup)
    told.script += [status, status]
    assert engine.generate(REQUESTS[1:])[0][0].token_ids == (4, 5)
    assert len(told.bodies) == 3
    engine.close()


def test_it_is_asked_no_more_often_than_was_said_and_the_key_is_hidden(told, setup):
    engine = engine_at(told.url, setup, retries=2, api_key_env="MY_KEY")
    told.script += [429] * 9
    with pytest.raises(RunFailed, match=r"the server refuses \(429\): no, Bearer \*\*\*") as caught:
        engine.generate(REQUESTS[1:])
    assert len(told.bodies) == 3
    assert KEY not in str(caught.value)
    assert KEY not in repr(caught.getrepr())
    engine.close()


def test_what_would_not_pass_is_not_asked_again(told, setup):
    engine = engine_at(told.url, setup)
    told.script += [400]
    with pytest.raises(LightRFTError, match=r"the server refuses \(400\)"):
        engine.generate(REQUESTS[1:])
    assert len(told.bodies) == 1
    engine.close()


def test_no_more_are_open_at_once_than_were_allowed(told, setup):
    told.slow = True
    engine = engine_at(told.url, setup, max_connections=3)
    engine.generate([GenerateRequest(str(number), (1,), (1, 2), Sampling(2)) for number in range(6)])
    assert told.most == 3
    engine.close()


def test_images_are_refused(setup):
    with served(setup) as url:
        engine = engine_at(url, setup)
        with pytest.raises(UserError, match="prompt c has images"):
            engine.generate([GenerateRequest("c", (1,), (1,), Sampling(2), (Media("image", "a.png"),))])
        engine.close()
