"""What only GPUs can do: tried where there is one, and its calls held against vLLM's signatures everywhere else."""

import inspect
import json

import pytest
import torch

from tests.engines.served_trials import same

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


@pytest.mark.gpu
@pytest.mark.parametrize("level", [1, 2])
def test_sleep_gives_memory_back_and_the_weights_return(start, level):
    trial = start(sleep=True, sleep_level=level, memory_fraction=0.2)
    before, awake = trial.engine.generate(trial.requests()), torch.cuda.mem_get_info()[0]
    trial.engine.sleep()
    assert torch.cuda.mem_get_info()[0] > awake + (1 << 30)
    trial.engine.update_weights(trial.strategy.weights, 2)
    trial.engine.wake()
    assert trial.wrong() == []
    assert same(trial.engine.generate(trial.requests()), before)


@pytest.mark.gpu
def test_weights_rounded_to_fp8_are_proven_by_what_arrived(start):
    trial = start(quantization="fp8", memory_fraction=0.2)
    assert trial.wrong() == []
    assert 0 < trial.gap() < 1.0


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["ipc", "nccl", "shared_memory"])
def test_weights_reach_a_server_by_every_way(start, way):
    if way == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip("NCCL goes from one GPU to another")
    trial = start(mode="server", sync=way, memory_fraction=0.2)
    trial.change(1.1)
    trial.engine.update_weights(trial.strategy.weights, 2)
    assert trial.wrong() == []
