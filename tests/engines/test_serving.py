"""What engines with servers share, tried on a server of the standard library and on processes that really start."""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from lightrft_core.data import GenerateRequest, Sampling
from lightrft_core.errors import EnvironmentUnfit, RunFailed, UserError
from lightrft_core.protocols import SoloWorld
from lightrft_core.testing.worlds import ToyWorlds
from lightrft_engines.serving.buckets import buckets, read_shared, write_shared
from lightrft_engines.serving.http import Client, Refused, Unreachable
from lightrft_engines.serving.process import ServerProcess, free_port, require_free
from lightrft_engines.serving.sharers import Sharers
from lightrft_engines.serving.siblings import check_lengths, completions_of, from_json, siblings_of, to_json

REQUESTS = [
    GenerateRequest("a", (1, 2), (7, 8), Sampling(4, stop=("x",), stop_token_ids=(5,))),
    GenerateRequest("b", (3,), (9,), Sampling(2, temperature=0.5)),
]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
        if self.path == "/slow":
            self.server.released.wait(20)
        if self.path == "/drop":
            self.connection.close()
            return
        status, answer = (400, {"error": {"message": "no such thing"}}) if self.path == "/bad" else (200, {"got": body})
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.released = True, threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(server):
    client = Client(f"http://127.0.0.1:{server.server_port}", 10.0, 4)
    yield client
    client.close()


def test_every_seed_is_a_sibling_with_the_models_stop_tokens_too():
    siblings = siblings_of(REQUESTS, (0, 5))
    assert [(one.place, one.seed, one.stop_token_ids) for one in siblings] == [
        ((0, 0), 7, (0, 5)),
        ((0, 1), 8, (0, 5)),
        ((1, 0), 9, (0, 5)),
    ]
    assert len({one.name for one in siblings}) == 3


def test_completions_come_back_by_request_and_what_has_no_end_is_an_abort():
    siblings = siblings_of(REQUESTS, (0,))
    siblings[0].add([4], [-1.0])
    siblings[0].add([5], [-0.5])
    siblings[0].finish("stop")
    siblings[2].add([4], [-2.0])
    (first, second), (third,) = completions_of(siblings, 2)
    assert (first.token_ids, first.logprobs, first.finish_reason) == ((4, 5), (-1.0, -0.5), "stop")
    assert (second.token_ids, second.finish_reason) == ((), "abort")
    assert (third.token_ids, third.finish_reason) == ((4,), "abort")


def test_tokens_without_logprobs_are_refused():
    sibling = siblings_of(REQUESTS, ())[0]
    with pytest.raises(RunFailed, match="2 tokens with 1 log-probabilities") as caught:
        sibling.add([1, 2], [-1.0])
    assert caught.value.where == "prompt a"


def test_a_reason_that_is_not_known_is_refused():
    with pytest.raises(RunFailed, match="ended a completion with 'repetition'"):
        siblings_of(REQUESTS, ())[0].finish("repetition")


def test_siblings_travel_between_ranks_as_json():
    for sibling in siblings_of(REQUESTS, (0,)):
        back = from_json(json.loads(json.dumps(to_json(sibling))))
        assert to_json(back) == to_json(sibling) and back.sampling == sibling.sampling


def test_ranks_that_share_a_model_know_what_each_of_them_has_to_write():
    def share(world):
        sharers = Sharers(world, 2)
        own = siblings_of(REQUESTS[world.rank % 2 :], (0,))
        groups = sharers.siblings(own)
        assert [to_json(one) for one in groups[sharers.place]] == [to_json(one) for one in own]
        return sharers.is_leader, sharers.gather(world.rank), [len(group) for group in groups]

    found = ToyWorlds(4).run(share)
    assert [is_leader for is_leader, _, _ in found] == [True, False, True, False]
    assert [places for _, places, _ in found] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert all(sizes == [3, 1] for _, _, sizes in found)


def test_a_rank_with_a_model_to_itself_sends_nothing():
    siblings = siblings_of(REQUESTS, ())
    (own,) = Sharers(ToyWorlds(3).run(lambda world: world)[1], 1).siblings(siblings)
    assert all(one is other for one, other in zip(own, siblings, strict=True))


def test_ranks_that_cannot_share_a_model_are_refused():
    with pytest.raises(UserError, match="2 ranks cannot share a copy of the model: there are 1 ranks") as caught:
        Sharers(SoloWorld(), 2)
    assert caught.value.where == "engine.tensor_parallel" and "engine.mode" in caught.value.hint


@pytest.mark.parametrize(("prompt", "said"), [((), "has no tokens"), ((1,) * 9, "9 tokens and 4 new ones are more")])
def test_prompts_that_do_not_fit_are_refused_by_name(prompt, said):
    with pytest.raises(UserError, match=said) as caught:
        check_lengths([GenerateRequest("q", prompt, (1,), Sampling(4))], 12, "engine.max_model_len")
    assert caught.value.where == "prompt q"


def test_buckets_hold_what_fits_and_a_large_tensor_travels_alone():
    sizes = {"a": 100_000, "b": 100_000, "c": 500_000, "d": 10, "e": 20}
    weights = [(name, torch.zeros(size)) for name, size in sizes.items()]
    assert [[name for name, _ in bucket] for bucket in buckets(weights, 1)] == [["a", "b"], ["c"], ["d", "e"]]


def test_a_bucket_passes_through_shared_memory_bit_for_bit(tmp_path):
    bucket = [("w", torch.randn(3, 4).to(torch.bfloat16)), ("b", torch.randn(5)), ("same", torch.ones(2))]
    path = write_shared(bucket, tmp_path)
    found = dict(read_shared(path))
    path.unlink()
    assert found.keys() == {"w", "b", "same"}
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in bucket)
    assert write_shared(bucket, tmp_path) != path


def test_shared_memory_that_is_not_there_names_the_option(tmp_path):
    with pytest.raises(EnvironmentUnfit, match="cannot put 1 MiB of weights into") as caught:
        write_shared([("w", torch.zeros(300_000))], tmp_path / "nowhere")
    assert caught.value.where == "engine.bucket_mb" and "--shm-size" in caught.value.hint


def test_answers_are_json_and_a_connection_is_used_again(client):
    assert [client.post("/x", {"n": n}) for n in range(3)] == [{"got": {"n": n}} for n in range(3)]


def test_a_refusal_carries_the_servers_words(client):
    with pytest.raises(Refused, match="no such thing") as caught:
        client.post("/bad")
    assert caught.value.status == 400


def test_a_broken_answer_and_a_missing_server_are_unreachable(client):
    with pytest.raises(Unreachable, match="POST /drop"):
        client.post("/drop")
    nobody = Client(f"127.0.0.1:{free_port('127.0.0.1')}", 5.0, 1)
    with pytest.raises(Unreachable, match="Connection refused"):
        nobody.get("/health")
    nobody.close()


def test_many_calls_run_side_by_side_and_the_first_error_is_told(client):
    answers = []
    assert client.each(lambda n: answers.append(client.post("/x", n)), range(20), None, pytest.fail) is None
    assert sorted(answer["got"] for answer in answers) == list(range(20))
    problem = client.each(lambda path: client.post(path), ["/x", "/bad", "/x"], None, pytest.fail)
    assert isinstance(problem, Refused)


def test_at_the_limit_calls_are_told_once_and_waited_for(client, server):
    told = []

    def release():
        told.append(True)
        server.released.set()

    begun = time.monotonic()
    assert client.each(lambda _: client.post("/slow"), range(3), 0.1, release) is None
    assert told == [True]
    assert time.monotonic() - begun < 10


def test_a_port_that_is_taken_is_refused(server):
    with pytest.raises(UserError, match=f"port {server.server_port} on 127.0.0.1 is in use") as caught:
        require_free("127.0.0.1", server.server_port)
    assert caught.value.where == "engine.port"


def process(tmp_path, code):
    return ServerProcess([sys.executable, "-c", code], {"ADDED": "1"}, tmp_path / "server.log")


def has_ended(pid):
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or ") Z " in stat.read_text()  # a zombie waits for whoever adopted it


def test_a_server_that_ends_early_tells_its_last_error(tmp_path):
    broken = process(tmp_path, "print('hello', flush=True); raise ValueError('no memory left')")
    with pytest.raises(RunFailed, match="ended with status 1: ValueError: no memory left") as caught:
        broken.wait_until(lambda: False, 30, "engine")
    assert "server.log" in caught.value.hint


def test_a_server_that_is_never_ready_is_stopped(tmp_path):
    slow = process(tmp_path, "import time; time.sleep(60)")
    with pytest.raises(RunFailed, match="was not ready after 0 seconds") as caught:
        slow.wait_until(lambda: False, 0.1, "engine")
    assert "engine.start_timeout" in caught.value.hint
    assert not slow.is_running


def test_it_is_no_rank_of_the_run_and_leaves_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, 'RANK' in os.environ, 'TORCHELASTIC_RUN_ID' in os.environ, os.environ['ADDED'], flush=True)\n"
        "time.sleep(60)\n"
    )
    started = process(tmp_path, code)
    started.wait_until(lambda: started.log_text().endswith("\n"), 30, "engine")
    child, *rest = started.log_text().split()
    assert rest == ["False", "False", "1"]
    started.stop()
    assert not started.is_running
    deadline = time.monotonic() + 10
    assert any(has_ended(child) for _ in iter(lambda: time.monotonic() < deadline, False))
