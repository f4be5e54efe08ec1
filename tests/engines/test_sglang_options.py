"""Options of the engine sglang, its requests and its messages, as far as they need no SGLang."""

import json

import pytest
from lightrft_core.data import GenerateRequest, Sampling
from lightrft_core.errors import EnvironmentUnfit, RunFailed, UserError
from lightrft_core.flags import parse_flags
from lightrft_engines.serving.engine import Facts
from lightrft_engines.serving.fitting import sync_way
from lightrft_engines.serving.siblings import siblings_of
from lightrft_engines.sglang_engine.arguments import command_line
from lightrft_engines.sglang_engine.config import SglangConfig
from lightrft_engines.sglang_engine.faults import explained
from lightrft_engines.sglang_engine.questions import ask, facts_of
from lightrft_engines.sglang_engine.sampling import request, take
from lightrft_engines.vllm_engine.config import VllmConfig


@pytest.mark.parametrize("options", [{}, {"mode": "server"}, {"mode": "server", "url": "http://127.0.0.1:8000"}])
def test_options_and_what_is_idle_among_them_are_vllms(options):
    assert SglangConfig.model_fields.keys() == VllmConfig.model_fields.keys()
    assert SglangConfig(**options).idle() == VllmConfig(**options).idle()


@pytest.mark.parametrize(
    ("flags", "option", "value"),
    [
        ("--engine_tp_size 2", "tensor_parallel", 2),
        ("--engine_mem_util 0.5", "memory_fraction", 0.5),
        ("--enable_engine_sleep", "sleep", True),
        ("--enforce_eager", "enforce_eager", True),
        ("--fp8_rollout", "quantization", "fp8"),
        ("--limit_mm_image_per_prompt 3", "max_images", 3),
    ],
)
def test_flags_of_the_older_lightrft_set_its_options(flags, option, value):
    overrides, errors = parse_flags(["--engine_type", "sglang", *flags.split()])
    assert errors == []
    keys = {item.key: item.value for item in overrides}
    assert keys.pop("engine.use") == "sglang"
    config = SglangConfig(**{key.removeprefix("engine."): given for key, given in keys.items()})
    assert getattr(config, option) == value


def sibling(**sampling):
    return siblings_of([GenerateRequest("a", (1, 2), (7,), Sampling(4, **sampling))], (0, 5))[0]


@pytest.mark.parametrize(
    ("sampling", "asked"),
    [
        ({}, {"temperature": 1.0, "top_k": -1, "top_p": 1.0, "min_p": 0.0}),
        ({"temperature": 0.0, "top_k": 3}, {"temperature": 0.0, "top_k": -1}),
        ({"top_k": 1, "temperature": 0.5}, {"temperature": 0.5, "top_k": -1, "min_p": 1.0}),
        ({"top_k": 9, "top_p": 0.9, "min_p": 0.1}, {"top_k": 9, "top_p": 0.9, "min_p": 0.1}),
        ({"stop": ("x",)}, {"stop": ["x"], "no_stop_trim": True}),
    ],
)
def test_sampling_in_sglangs_words(sampling, asked):
    body = request(sibling(**sampling))
    json.dumps(body)
    assert body["input_ids"] == [1, 2]
    settings = body["sampling_params"]
    assert settings["sampling_seed"] == 7 and settings["stop_token_ids"] == [0, 5]
    assert {name: settings[name] for name in asked} == asked


def test_an_answer_becomes_tokens_with_the_logprobs_that_they_were_drawn_with():
    one = sibling()
    about = {"output_token_logprobs": [[-1.5, 8, None], [-0.25, 5, None]], "finish_reason": {"type": "stop"}}
    take(one, {"output_ids": [8, 5], "meta_info": about})
    completion = one.completion()
    assert (completion.token_ids, completion.logprobs, completion.finish_reason) == ((8, 5), (-1.5, -0.25), "stop")


def test_an_answer_that_waited_when_time_was_up_is_an_empty_abort():
    one = sibling()
    take(one, {"output_ids": [], "meta_info": {"finish_reason": {"type": "abort", "message": "Abort in queue"}}})
    assert (one.completion().token_ids, one.completion().finish_reason) == ((), "abort")


def test_questions_go_by_the_name_of_a_weight_and_answers_are_numbers():
    asked = []

    def call(route, body):
        asked.append((route, body))
        return [float(byte) for byte in json.dumps([{"w": [1, [[0, "0x1p-1"]]]}]).encode()]

    assert ask(call, "samples", ["w"]) == [{"w": [1, [[0, "0x1p-1"]]]}]
    ((route, body),) = asked
    assert route == "get_weights_by_name"
    assert json.loads(body["name"].removeprefix("lightrft:")) == {"ask": "samples", "names": ["w"]}


def test_arguments_become_flags():
    found = {"tp_size": 2, "trust_remote_code": False, "sleep_on_idle": True, "custom_weight_loader": ["a.b"]}
    words = command_line({**found, "limit_mm_data_per_request": {"image": 2}})
    assert words == [
        *("--tp-size", "2", "--sleep-on-idle", "--custom-weight-loader", "a.b"),
        *("--limit-mm-data-per-request", '{"image": 2}'),
    ]


def test_rounded_weights_go_where_they_can_be_proven():
    assert sync_way(SglangConfig(quantization="fp8"), is_on_cpu=False) == "shared_memory"
    with pytest.raises(UserError, match="go through shared memory") as caught:
        sync_way(SglangConfig(mode="server", quantization="fp8", sync="nccl"), is_on_cpu=False)
    assert caught.value.where == "engine.sync"


@pytest.mark.parametrize(
    ("said", "kind", "where"),
    [
        ("ModuleNotFoundError: No module named 'sgl_kernel'", EnvironmentUnfit, "engine.use"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", EnvironmentUnfit, "engine.memory"),
        ("AssertionError: Memory pool size is too small", UserError, "engine.kv_cache_gb"),
        ("ValueError: Model architectures ['X'] are not supported for now.", UserError, "model.path"),
        ("KeyError: 'something else'", RunFailed, "engine"),
    ],
)
def test_errors_of_sglang_name_what_to_change(said, kind, where):
    error = explained(f"loading\n[2026-11-26 20:00:00 TP0] Scheduler hit an exception: Traceback\n{said}\n\n", "start")
    assert type(error) is kind
    assert error.where.startswith(where)
    assert error.what == f"SGLang could not start: {said}"


def test_schedulers_that_lack_a_hook_are_refused():
    told = {"lacks": [], "max_model_len": 254, "is_multimodal": False}
    assert facts_of(told) == Facts(254, False)
    with pytest.raises(RunFailed, match=r"run without sglang\.x\.Y as LightRFT needs it"):
        facts_of({**told, "lacks": ["sglang.x.Y"]})
