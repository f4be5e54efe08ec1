"""`lightrft serve`, started once, and what talks to it: plain HTTP, `lightrft chat` and the engine `openai`."""

import http.client
import io
import json
import logging
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from lightrft_core.cli.main import run
from lightrft_core.data import GenerateRequest, Prompt, Sampling
from lightrft_core.serving.source import open_source

KEY = "a-key-of-this-test"
QUESTION = "Tom has 3 apples and buys 4 more. How many apples has he?"
RUN_FILE = """
algorithm: grpo
model: {path: MODEL}
task: {use: word_problems, split: train, num: 16}
evaluation: {task: {use: word_problems, split: test, num: 24}, temperature: 0}
sampler: {group_size: 4, prompts_per_step: 4, max_new_tokens: 24}
rewards: [gsm8k]
optim: {lr: 3.0e-3, batch_size: 16}
strategy: {threads: 1, device: cpu}
selftest: {enabled: false}
run: {name: tiny, steps: 1}
checkpoint: {every: 1}
trackers: [jsonl]
"""


class Server:
    def __init__(self, url: str) -> None:
        self.url = url

    def send(self, method, path, body=None, *, key=KEY, **headers):
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
        given = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {}) | headers
        connection.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body), given)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, text

    def post(self, path, **body):
        status, text = self.send("POST", path, body)
        assert status == 200, text
        return json.loads(text)

    def refusal(self, path="/v1/completions", **body):
        status, text = self.send("POST", path, body)
        return status, json.loads(text)["error"]["message"]

    def chunks(self, path, **body):
        status, text = self.send("POST", path, {**body, "stream": True})
        assert status == 200, text
        events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert events.pop() == "[DONE]"
        return [json.loads(event) for event in events]


@pytest.fixture(scope="module")
def server(quickstart_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    command = [sys.executable, "-m", "lightrft_core.cli.main", "serve", str(quickstart_model), "--port", "0"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "SERVER_KEY": KEY}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--api-key-env", "SERVER_KEY"],
            cwd=folder,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    line = process.stdout.readline()
    try:
        assert line.startswith("serving quickstart-model at http://127.0.0.1:"), line + (folder / "log").read_text()
        yield Server(line.split()[3].removesuffix("/v1"))
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert (folder / "log").read_text() == ""
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def embedded(quickstart_model):
    """The same model in this process."""
    patch = pytest.MonkeyPatch()
    patch.setenv("CUDA_VISIBLE_DEVICES", "")
    with open_source(str(quickstart_model), step=None, engine=None, sets=()) as source:
        yield source
    patch.undo()


@pytest.fixture(scope="module")
def prompt(embedded):
    return embedded.adapter.render(Prompt("q", ({"role": "user", "content": QUESTION},)))


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """A command in this process, with lines piped into it; exit code and output."""
    monkeypatch.setenv("SERVER_KEY", KEY)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)

    def call(*words, lines=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        capsys.readouterr()
        try:
            code = run([str(word) for word in words])
        finally:
            logging.getLogger().handlers.clear()
        done = capsys.readouterr()
        return code, done.out, done.err

    return call


def own(embedded, prompt, seeds=(0,), **changes):
    sampling = Sampling(**{"max_new_tokens": 24, "temperature": 0.0, **changes})
    return embedded.engine.generate([GenerateRequest("own", prompt, seeds, sampling)])[0]


def test_a_completion_by_token_ids_is_that_of_the_engine_with_its_log_probabilities(server, embedded, prompt):
    asked = {"prompt": list(prompt), "max_tokens": 24, "temperature": 0, "return_token_ids": True, "logprobs": 0}
    answer = server.post("/v1/completions", **asked)
    (choice,), (expected,) = answer["choices"], own(embedded, prompt)
    assert choice["token_ids"] == list(expected.token_ids)
    assert choice["prompt_token_ids"] == list(prompt)
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected.logprobs, abs=1e-5)
    assert choice["text"] == embedded.adapter.decode(expected.token_ids)
    assert choice["finish_reason"] == expected.finish_reason
    num = len(expected.token_ids)
    assert answer["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": num,
        "total_tokens": len(prompt) + num,
    }


def test_a_seed_draws_what_the_engine_draws_and_choices_differ(server, embedded, prompt):
    asked = {"prompt": list(prompt), "max_tokens": 24, "return_token_ids": True, "seed": 11, "n": 4, "top_k": 40}
    choices = server.post("/v1/completions", **asked)["choices"]
    assert choices[0]["token_ids"] == list(own(embedded, prompt, (11,), temperature=1.0, top_k=40)[0].token_ids)
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert len({tuple(choice["token_ids"]) for choice in choices}) > 1


def test_the_pieces_of_a_stream_join_to_the_whole(server, prompt):
    asked = {"prompt": list(prompt), "max_tokens": 24, "seed": 3, "n": 3, "return_token_ids": True, "logprobs": 1}
    whole = server.post("/v1/completions", **asked)["choices"]
    chunks = server.chunks("/v1/completions", **asked, stream_options={"include_usage": True})
    assert chunks.pop()["usage"]["completion_tokens"] == sum(len(choice["token_ids"]) for choice in whole)
    for choice in whole:
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert len(own) == len(choice["token_ids"])
        assert "".join(piece["text"] for piece in own) == choice["text"]
        assert [token for piece in own for token in piece["token_ids"]] == choice["token_ids"]
        logprobs = [value for piece in own for value in piece["logprobs"]["token_logprobs"]]
        assert logprobs == pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-5)
        assert [piece["finish_reason"] for piece in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]


def test_a_chat_goes_through_the_models_template_and_streams(server, embedded, prompt):
    asked = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 24, "temperature": 0}
    answer = server.post("/v1/chat/completions", **asked, return_token_ids=True, logprobs=True)
    (expected,) = own(embedded, prompt)
    assert answer["prompt_token_ids"] == list(prompt)
    message = answer["choices"][0]["message"]
    assert message == {"role": "assistant", "content": embedded.adapter.decode(expected.token_ids)}
    told = [item["logprob"] for item in answer["choices"][0]["logprobs"]["content"]]
    assert told == pytest.approx(expected.logprobs, abs=1e-5)
    chunks = server.chunks("/v1/chat/completions", **asked)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta["content"] for delta in deltas) == message["content"]


def test_a_stop_text_ends_a_completion_and_is_left_out_unless_it_is_asked_for(server, embedded, prompt):
    (free,) = own(embedded, prompt)
    text = embedded.adapter.decode(free.token_ids)
    stop = text[3:5]
    asked = {"prompt": list(prompt), "max_tokens": 24, "temperature": 0, "stop": stop, "return_token_ids": True}
    without = server.post("/v1/completions", **asked)["choices"][0]
    kept = server.post("/v1/completions", **asked, include_stop_str_in_output=True)["choices"][0]
    streamed = server.chunks("/v1/completions", **asked)
    assert without["text"] == text[: text.index(stop)]
    assert kept["text"] == without["text"] + stop
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == without["text"]
    assert without["finish_reason"] == "stop"
    assert without["token_ids"] == list(free.token_ids[: len(without["token_ids"])])


def test_parallel_requests_get_the_answers_that_they_would_get_alone(server, embedded, prompt):
    prompts = [prompt[: len(prompt) - cut] for cut in range(8)]

    def ask(number):
        asked = {"prompt": list(prompts[number]), "max_tokens": 24, "seed": number, "return_token_ids": True}
        if number % 2:
            return server.post("/v1/completions", **asked)["choices"][0]["token_ids"]
        chunks = server.chunks("/v1/completions", **asked)
        return [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    alone = [own(embedded, prompts[number], (number,), temperature=1.0)[0].token_ids for number in range(8)]
    assert found == [list(token_ids) for token_ids in alone]


def test_several_prompts_come_back_in_order(server, embedded, prompt):
    asked = {"max_tokens": 8, "temperature": 0, "n": 2, "return_token_ids": True}
    choices = server.post("/v1/completions", prompt=[list(prompt), list(prompt[:-2])], **asked)["choices"]
    expected = [own(embedded, tokens, max_new_tokens=8)[0].token_ids for tokens in (prompt, prompt[:-2])]
    assert [choice["token_ids"] for choice in choices] == [list(expected[index]) for index in (0, 0, 1, 1)]


def test_a_bad_request_is_refused_with_the_field_and_the_reason(server):
    for body, words in (
        ({"prompt": [1, 2], "top_p": 2}, "top_p: input should be less than or equal to 1"),
        ({"prompt": [1, 2], "max_tokens": 0}, "max_tokens"),
        ({"prompt": [1, 2], "beams": 4}, "beams: this server has no such option"),
        ({"prompt": [1, 2], "presence_penalty": 0.5}, "presence_penalty: this server does not have it"),
        ({"prompt": [1, 99999]}, "prompt: token ids of this model go from 0 to 457"),
        ({"prompt": []}, "prompt: it has no tokens"),
        ({"prompt": {"a": 1}}, "prompt: must be text, token ids, or a list of these"),
        ({}, "prompt is missing"),
        ({"prompt": [1, 2], "logprobs": 5}, "logprobs"),
    ):
        status, message = server.refusal(**body)
        assert status == 400, message
        assert words in message
    assert server.refusal("/v1/chat/completions", messages=[])[0] == 400
    assert server.refusal(prompt=[1], model="other")[0] == 404
    assert server.refusal("/v1/embeddings", input="a")[0] == 404
    assert server.send("GET", "/v1/completions")[0] == 405
    assert server.send("POST", "/v1/completions", b"{not json")[0] == 400
    assert server.send("POST", "/v1/completions", {}, **{"Content-Length": str(1 << 30)})[0] == 413
    assert server.send("POST", "/v1/completions", {}, **{"Content-Type": "text/plain"})[0] == 415


def test_null_and_neutral_options_are_taken(server, prompt):
    asked = {
        "prompt": list(prompt),
        "max_tokens": 2,
        "seed": None,
        "frequency_penalty": 0.0,
        "best_of": 1,
        "user": "me",
    }
    assert server.post("/v1/completions", **asked)["choices"]


def test_only_health_goes_without_the_key(server):
    assert server.send("GET", "/health", key=None)[0] == 200
    for key in (None, "wrong", KEY + "x"):
        status, text = server.send("POST", "/v1/completions", {"prompt": [1, 2]}, key=key)
        assert status == 401
        assert "Authorization: Bearer" in text
    status, text = server.send("GET", "/v1/models")
    assert [item["id"] for item in json.loads(text)["data"]] == ["quickstart-model"]


def test_chat_answers_piped_lines_with_history_and_commands(call, quickstart_model, embedded):
    lines = f"{QUESTION}\nAnd with 2 more?\n/reset\n{QUESTION}\n/what\n/quit\nnever read\n"
    code, out, err = call("chat", quickstart_model, "--temperature", "0", "--max-new-tokens", "24", lines=lines)
    assert code == 0, err
    said = [{"role": "user", "content": QUESTION}]
    first = _greedy(embedded, said)
    said += [{"role": "assistant", "content": first}, {"role": "user", "content": "And with 2 more?"}]
    second = _greedy(embedded, said)
    assert out == f"{first}\n{second}\n{first}\n"
    assert "there is no /what. /reset forgets" in err


def test_chat_by_url_says_what_chat_with_the_model_says(call, server, quickstart_model):
    lines = f"{QUESTION}\n/system Be brief.\n{QUESTION}\n"
    options = ("--temperature", "0", "--max-new-tokens", "24")
    local = call("chat", quickstart_model, *options, lines=lines)
    remote = call("chat", "--url", server.url, "--api-key-env", "SERVER_KEY", *options, lines=lines)
    assert local == remote
    assert local[0] == 0
    code, _, err = call("chat", "--url", server.url, *options, lines=lines)
    assert code == 2
    assert "wants another key. Name the variable that holds it: --api-key-env NAME." in err


def test_the_engine_openai_gives_the_score_of_the_engine_embedded(call, server, quickstart_model, tmp_path):
    (tmp_path / "run.yaml").write_text(RUN_FILE.replace("MODEL", str(quickstart_model)))
    remote = ("--set", "engine.use=openai", "--set", f"engine.url={server.url}/v1")
    code, here, err = call("eval", "run.yaml", "--json", "--out", "here.jsonl")
    assert code == 0, err
    code, there, err = call(
        "eval", "run.yaml", "--json", "--out", "there.jsonl", *remote, "--set", "engine.api_key_env=SERVER_KEY"
    )
    assert code == 0, err
    assert json.loads(there) == json.loads(here)
    assert (tmp_path / "there.jsonl").read_text() == (tmp_path / "here.jsonl").read_text()


def test_a_step_or_several_ranks_make_no_sense_with_it(call, server, quickstart_model, tmp_path, monkeypatch):
    (tmp_path / "run.yaml").write_text(RUN_FILE.replace("MODEL", str(quickstart_model)))
    remote = ("--set", "engine.use=openai", "--set", f"engine.url={server.url}")
    code, _, err = call("eval", "run.yaml", "--step", "3", *remote)
    assert code == 2
    assert "--step: has no effect: engine openai has weights of its own." in err
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = call("eval", "run.yaml", *remote)
    assert code == 2
    assert "Start it without torchrun" in err


def test_training_with_it_is_refused_before_anything_starts(call, server, quickstart_model, tmp_path):
    (tmp_path / "run.yaml").write_text(RUN_FILE.replace("MODEL", str(quickstart_model)))
    for words in (("train",), ("train", "--dry-run")):
        code, _, err = call(
            words[0], "run.yaml", *words[1:], "--set", "engine.use=openai", "--set", f"engine.url={server.url}"
        )
        assert code == 2
        assert "engine openai takes no weights: it would never generate with what was trained." in err
        assert "`embedded`" in err
    assert not (tmp_path / "runs").exists()


def test_a_runs_checkpoint_is_served_by_run_by_folder_and_by_step(call, quickstart_model, embedded, prompt, tmp_path):
    (tmp_path / "run.yaml").write_text(RUN_FILE.replace("MODEL", str(quickstart_model)))
    code, _, err = call("train", "run.yaml")
    assert code == 0, err
    found = {}
    for name, step in (("runs/tiny", None), ("runs/tiny", 1), ("runs/tiny/checkpoints/step_000001", None)):
        with open_source(name, step=step, engine=None, sets=()) as source:
            assert (source.name, source.max_new_tokens) == ("tiny-step-1", 24)
            found[name, step] = own(source, prompt)[0]
    assert len(set(found.values())) == 1
    assert next(iter(found.values())) != own(embedded, prompt)[0]
    code, _, err = call("chat", "runs/tiny", "--step", "7")
    assert code == 2
    assert "Checkpoints there: " in err


def test_what_cannot_be_served_is_refused_with_advice(call, quickstart_model):
    for words, told in (
        (("serve", quickstart_model, "--host", "0.0.0.0"), "--host: 0.0.0.0 can be reached from other machines"),
        (("serve", quickstart_model, "--api-key-env", "NO_SUCH_KEY"), "the variable NO_SUCH_KEY holds no key."),
        (("serve", quickstart_model, "--step", "3"), "--step: has no effect"),
        (("serve", "no-such-model"), "no-such-model does not exist."),
        (("serve", quickstart_model, "--set", "loss.clip_low=1"), "has no effect on what is served."),
        (("chat", quickstart_model, "--engine", "openai", "--set", "engine.url=http://x"), "has weights of its own"),
        (("chat",), "name a run or model to talk to, or a server by --url."),
        (("chat", "--url", "http://127.0.0.1:9", "--step", "3"), "--step: has no effect with --url"),
        (("chat", "--url", "http://127.0.0.1:9"), "nothing answers at http://127.0.0.1:9"),
        (("chat", quickstart_model, "--model", "a"), "--model: has no effect with no --url"),
    ):
        code, _, err = call(*words)
        assert code == 2, words
        assert told in err


def _greedy(source, messages):
    prompt = source.adapter.render(Prompt("q", tuple(messages)))
    return source.adapter.decode(own(source, prompt)[0].token_ids)
