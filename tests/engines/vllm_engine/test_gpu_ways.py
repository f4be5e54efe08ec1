"""What only GPUs can do: tried where there is one, and its calls held against vLLM's signatures everywhere else."""

import inspect
import json

import pytest
import torch

from tests.engines.served_gpu_checks import *  # noqa: F403  # each is a test of this engine

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture
def gpu_arguments(colocated, monkeypatch):
    """Arguments for a GPU, made on whatever machine this is."""
    from lightrft_engines.vllm_engine import arguments
    from lightrft_engines.vllm_engine.config import VllmConfig

    class Gpu:
        @staticmethod
        def is_cpu() -> bool:
            return False

    monkeypatch.setattr(arguments, "current_platform", Gpu)
    config = VllmConfig(mode="server", quantization="fp8", sleep=True, max_images=2, max_videos=1, memory_fraction=0.3)
    return arguments.arguments(config, colocated.setup)


def test_every_argument_is_one_of_vllms(gpu_arguments):
    from vllm import EngineArgs

    known = set(inspect.signature(EngineArgs).parameters)
    assert gpu_arguments.keys() <= known
    asked = {"enable_sleep_mode", "quantization", "gpu_memory_utilization", "limit_mm_per_prompt"}
    assert asked <= gpu_arguments.keys()


def test_the_servers_command_line_takes_the_same_arguments(gpu_arguments):
    from lightrft_engines.vllm_engine.arguments import command_line
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    more = {"weight_transfer_config": json.dumps({"backend": "ipc"})}
    words = command_line({**gpu_arguments, **more})
    words += ["--host", "127.0.0.1", "--port", "8000", "--disable-uvicorn-access-log", "--disable-log-stats"]
    parsed = vars(make_arg_parser(FlexibleArgumentParser()).parse_args(words))
    for name, value in gpu_arguments.items():
        assert parsed[name] == value, name
    assert parsed["weight_transfer_config"].backend == "ipc"


def test_the_calls_of_the_weight_transfer_are_vllms():
    from lightrft_engines.vllm_engine.gpu_transfer import Source, ipc_info, nccl_info
    from vllm.distributed.weight_transfer.base import WeightSource
    from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerWeightTransferEngine
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

    source = Source(lambda: iter([("w", torch.ones(2, 3, dtype=torch.bfloat16))]))
    assert isinstance(source, WeightSource)
    assert [(one.name, one.dtype, one.shape) for one in source.metadata()] == [("w", torch.bfloat16, (2, 3))]
    assert [name for name, _ in source] == [name for name, _ in source] == ["w"]
    assert ipc_info(0, 1 << 20).is_sender and not ipc_info(1, 1 << 20).is_sender
    assert nccl_info(0, "127.0.0.1", 3, 1 << 20).world_size == 3
    client = HTTPVLLMWeightSyncClient("http://127.0.0.1:1", timeout=1)
    for engine in (IPCTrainerWeightTransferEngine, NCCLTrainerWeightTransferEngine):
        inspect.signature(engine.trainer_init).bind(ipc_info(0, 1), client=client, source=source)
        inspect.signature(engine.send_weights).bind(None)
        inspect.signature(engine.shutdown).bind(None)


def test_the_calls_of_sleep_mode_are_vllms():
    from vllm import LLM

    inspect.signature(LLM.sleep).bind(None, 2)
    inspect.signature(LLM.wake_up).bind(None, ["weights"])
    assert '"weights", "kv_cache"' in (LLM.wake_up.__doc__ or "")
