"""What only GPUs can do: tried where there is one, and its calls held against SGLang's signatures everywhere else."""

import inspect

import pytest
import torch

from tests.engines.served_gpu_checks import *  # noqa: F403  # each is a test of this engine

pytestmark = [pytest.mark.sglang, pytest.mark.slow]


@pytest.fixture
def gpu_arguments(colocated, monkeypatch):
    """Arguments for a GPU, made on whatever machine this is."""
    from lightrft_engines.sglang_engine import arguments
    from lightrft_engines.sglang_engine.config import SglangConfig

    monkeypatch.setattr(arguments, "is_on_cpu", lambda: False)
    options = {"quantization": "fp8", "sleep": True, "sleep_level": 1, "max_images": 2, "max_videos": 1}
    config = SglangConfig(mode="server", memory_fraction=0.3, enforce_eager=True, max_model_len=64, **options)
    return arguments.arguments(config, colocated.setup)


def test_every_argument_is_one_of_sglangs(gpu_arguments):
    from sglang.srt.server_args import ServerArgs

    assert gpu_arguments.keys() <= set(inspect.signature(ServerArgs).parameters)
    asked = {"enable_memory_saver", "enable_weights_cpu_backup", "quantization", "mem_fraction_static"}
    assert asked | {"limit_mm_data_per_request", "disable_cuda_graph", "context_length"} <= gpu_arguments.keys()


def test_the_servers_command_line_takes_the_same_arguments(gpu_arguments):
    from lightrft_engines.sglang_engine.arguments import command_line
    from sglang.srt.server_args import prepare_server_args

    words = [*command_line(gpu_arguments), "--host", "127.0.0.1", "--port", "8000", "--skip-server-warmup"]
    parsed = prepare_server_args(words)
    for name, value in gpu_arguments.items():
        assert getattr(parsed, name) == value, name


def test_our_hooks_are_where_sglang_has_what_they_replace():
    import pkgutil

    from lightrft_engines.sglang_engine import draws, scheduler
    from sglang.srt.layers.sampler import Sampler

    for target in scheduler.TARGETS:
        assert callable(pkgutil.resolve_name(target)), target
    assert len(inspect.signature(draws.forward).parameters) == len(inspect.signature(Sampler.forward).parameters)
    names = list(inspect.signature(draws.forward).parameters)[1:]
    assert names == list(inspect.signature(Sampler.forward).parameters)[1:]


def test_the_bodies_of_our_calls_are_requests_of_sglang():
    from lightrft_engines.sglang_engine.inside import REQUESTS
    from lightrft_engines.sglang_engine.transfer import _body, _described, meeting
    from sglang.srt.managers import io_struct
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

    bucket = [("w", torch.ones(2, 3, dtype=torch.bfloat16))]
    bodies = {
        "begin_weight_update": {},
        "end_weight_update": {},
        "update_weights_from_tensor": _body(["x"], "flattened_bucket"),
        "update_weights_from_distributed": _described(bucket, "group"),
        "init_weights_update_group": meeting("127.0.0.1", 3, "nccl", "group"),
        "get_weights_by_name": {"name": "w"},
        "release_memory_occupation": {"tags": ["kv_cache"]},
        "resume_memory_occupation": {"tags": ["weights"]},
    }
    assert bodies.keys() == REQUESTS.keys()
    for route, body in bodies.items():
        request = getattr(io_struct, REQUESTS[route])(**body)
        assert all(getattr(request, name) == value for name, value in body.items()), route
        inspect.signature(getattr(TokenizerManager, route)).bind(None, request, None)
    assert _described(bucket, "group")["dtypes"] == ["bfloat16"] and _described(bucket, "group")["shapes"] == [[2, 3]]


def test_every_route_that_is_called_is_one_of_the_servers():
    from lightrft_engines.sglang_engine.inside import REQUESTS
    from sglang.srt.entrypoints.http_server import app

    routes = {route.path: route.methods for route in app.routes if hasattr(route, "methods")}
    for route in (*REQUESTS, "generate"):
        assert "POST" in routes[f"/{route}"]
    assert "GET" in routes["/health"]


def test_memory_has_the_tags_that_are_given_back_and_taken_again():
    from sglang.srt.constants import GPU_MEMORY_ALL_TYPES

    assert {"weights", "kv_cache"} <= set(GPU_MEMORY_ALL_TYPES)


def test_buckets_flatten_and_unfold_bit_for_bit():
    from lightrft_engines.sglang_engine.transfer import flatten

    bucket = [("a", torch.randn(3, 5)), ("b", torch.randn(4).to(torch.bfloat16))]
    found = flatten(bucket).reconstruct_tensors()
    assert all(
        name == known and torch.equal(one, other) for (name, one), (known, other) in zip(found, bucket, strict=True)
    )


@pytest.mark.gpu
def test_weights_reach_a_colocated_engine_by_handles(start):
    trial = start()
    trial.change(1.1)
    trial.engine.update_weights(trial.strategy.weights, 2)
    assert trial.wrong() == []
    assert trial.gap() < 1e-2
