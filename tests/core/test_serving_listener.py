"""Who may ask the server, over real HTTP, with the toy engine behind it."""

import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from lightrft_core.errors import UserError
from lightrft_core.model_choice import Limits
from lightrft_core.serving.api import Api, Served
from lightrft_core.serving.calls import Ticket
from lightrft_core.serving.desk import Desk
from lightrft_core.serving.listener import Listener, is_loopback
from lightrft_core.testing.toys import ToyEngine, ToyEngineConfig, toy_setup

LIMITS = Limits(11, 64)


@contextmanager
def listening(tmp_path, *, key=None, desk=None, limits=LIMITS):
    setup = toy_setup(tmp_path)
    threads = []
    if desk is None:
        desk = Desk(ToyEngine(ToyEngineConfig(), setup))
        threads.append(threading.Thread(target=desk.run))
    api = Api(Served("toy", setup.require_model(), 3, limits), desk)
    with Listener("127.0.0.1", 0, api, key) as listener:
        threads.append(threading.Thread(target=listener.serve_forever, args=(0.02,)))
        for thread in threads:
            thread.start()
        try:
            yield listener
        finally:
            listener.shutdown()
            desk.close()
            for thread in threads:
                thread.join()


def ask(listener, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", listener.server_port, timeout=20)
    given = {"Content-Type": "application/json", **headers}
    connection.request("GET" if body is None else "POST", path, body and json.dumps(body), given)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response, answer


@pytest.mark.parametrize(
    ("host", "own"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("", False),
     ("example.org", False)],
)  # fmt: skip
def test_an_address_is_this_machines_or_not(host, own):
    assert is_loopback(host) is own


def test_another_address_without_a_key_is_refused():
    with pytest.raises(UserError, match="--api-key-env NAME"):
        Listener("0.0.0.0", 0, None, None)


def test_without_a_key_a_name_that_is_not_this_machines_is_refused(tmp_path):
    with listening(tmp_path) as listener:
        assert ask(listener, "/v1/models")[0].status == 200
        assert ask(listener, "/v1/models", Host="localhost:8000")[0].status == 200
        assert ask(listener, "/v1/models", Host="evil.example")[0].status == 403


def test_with_a_key_it_is_the_key_that_counts(tmp_path):
    with listening(tmp_path, key="k") as listener:
        assert ask(listener, "/v1/models", Host="model.example", Authorization="Bearer k")[0].status == 200
        assert ask(listener, "/v1/models")[0].status == 401
        assert ask(listener, "/v1/models", Authorization="Bearer")[0].status == 401


def test_a_port_in_use_is_told(tmp_path):
    with listening(tmp_path) as listener, pytest.raises(UserError, match="cannot be listened on"):
        Listener("127.0.0.1", listener.server_port, None, None)


def test_many_that_come_at_the_same_moment_are_all_answered(tmp_path):
    with listening(tmp_path) as listener, ThreadPoolExecutor(100) as pool:
        answers = list(
            pool.map(lambda seed: ask(listener, "/v1/completions", {"prompt": [1], "seed": seed}), range(200))
        )
    assert [response.status for response, _ in answers] == [200] * 200


def test_too_many_that_wait_are_asked_to_come_back(tmp_path):
    desk = Desk(ToyEngine(ToyEngineConfig(), toy_setup(tmp_path)), max_waiting=1)
    assert desk.submit(Ticket(()))
    with listening(tmp_path, desk=desk) as listener:
        response, answer = ask(listener, "/v1/completions", {"prompt": [1]})
        assert (response.status, response.getheader("Retry-After")) == (503, "1")
        assert "too many requests wait" in answer["error"]["message"]


def test_what_the_model_has_no_places_for_is_refused_and_the_usual_number_shrinks_to_fit(tmp_path):
    with listening(tmp_path, limits=Limits(11, 5)) as listener:
        response, answer = ask(listener, "/v1/completions", {"prompt": [1, 2], "max_tokens": 4})
        assert response.status == 400
        assert answer["error"]["message"] == "max_tokens: 2 tokens and 4 new ones are more than 5"
        assert ask(listener, "/v1/completions", {"prompt": [1] * 5})[0].status == 400
        assert ask(listener, "/v1/completions", {"prompt": [1] * 4})[1]["usage"]["completion_tokens"] == 1


def test_a_fault_inside_is_told_without_its_insides(tmp_path, monkeypatch):
    with listening(tmp_path) as listener:
        monkeypatch.setattr(listener.api, "models", lambda: {}["/home/secret"])
        response, answer = ask(listener, "/v1/models")
    assert response.status == 500
    assert answer["error"]["message"] == "internal error; the server's log says more"


def test_an_engine_that_streams_nothing_still_answers_a_stream(tmp_path):
    with listening(tmp_path) as listener:
        connection = http.client.HTTPConnection("127.0.0.1", listener.server_port, timeout=20)
        body = json.dumps({"prompt": [1], "seed": 4, "stream": True, "return_token_ids": True})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        events = connection.getresponse().read().decode().split("\n\n")
        whole = ask(listener, "/v1/completions", {"prompt": [1], "seed": 4, "return_token_ids": True})[1]
    assert events[-2:] == ["data: [DONE]", ""]
    assert json.loads(events[0].removeprefix("data: "))["choices"] == whole["choices"]
