"""Options of the engine vllm and its messages, as far as they need no vLLM."""

import pytest
from lightrft_core.errors import EnvironmentUnfit, RunFailed, UserError
from lightrft_core.flags import parse_flags
from lightrft_engines.vllm_engine.config import VllmConfig
from lightrft_engines.vllm_engine.faults import explained


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        ({}, {"url", "port", "start_timeout", "restart", "sync", "sleep_level"}),
        ({"mode": "server"}, {"sleep_level"}),
        ({"mode": "server", "sleep": True, "kv_cache_gb": 2}, {"memory_fraction"}),
    ],
)
def test_options_that_do_nothing_are_named(options, idle):
    assert VllmConfig(**options).idle().keys() == idle


def test_a_server_that_was_started_by_others_has_its_own_options():
    idle = VllmConfig(mode="server", url="http://127.0.0.1:8000").idle()
    assert {"tensor_parallel", "dtype", "restart", "enforce_eager"} <= idle.keys()
    assert idle["dtype"].because == "url"


@pytest.mark.parametrize(
    ("flags", "option", "value"),
    [
        ("--engine_tp_size 2", "tensor_parallel", 2),
        ("--engine_mem_util 0.5", "memory_fraction", 0.5),
        ("--enable_engine_sleep", "sleep", True),
        ("--disable_engine_sleep", "sleep", False),
        ("--enforce_eager", "enforce_eager", True),
        ("--fp8_rollout", "quantization", "fp8"),
        ("--limit_mm_image_per_prompt 3", "max_images", 3),
        ("--limit_mm_video_per_prompt 1", "max_videos", 1),
    ],
)
def test_flags_of_the_older_lightrft_set_its_options(flags, option, value):
    overrides, errors = parse_flags(["--engine_type", "vllm", *flags.split()])
    assert errors == []
    keys = {item.key: item.value for item in overrides}
    assert keys.pop("engine.use") == "vllm"
    config = VllmConfig(**{key.removeprefix("engine."): given for key, given in keys.items()})
    assert getattr(config, option) == value


@pytest.mark.parametrize(
    ("said", "kind", "where"),
    [
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", EnvironmentUnfit, "engine.memory_fraction"),
        ("ValueError: Free memory on device cuda:0 (1/80 GiB) on startup is less", EnvironmentUnfit, "engine.memory"),
        ("ValueError: To serve at least one request with the model's max seq len", UserError, "engine.max_model_len"),
        ("ValueError: Total number of attention heads (3) must be divisible by tensor parallel size (2).", UserError,
         "engine.tensor_parallel"),
        ("Model architectures ['X'] are not supported for now.", UserError, "model.path"),
        ("KeyError: 'something else'", RunFailed, "engine"),
    ],
)  # fmt: skip
def test_errors_of_vllm_name_what_to_change(said, kind, where):
    log = (
        f"loading\n(EngineCore_DP0 pid=7) ERROR 11-26 20:00:00 [core.py:9] {said}\nmore" if where != "engine" else said
    )
    error = explained(log, "start")
    assert type(error) is kind
    assert error.where.startswith(where)
    assert error.what == f"vLLM could not start: {said}"
