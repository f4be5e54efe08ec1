"""What holds for every engine with a process of its own where there is a GPU; modules of tests import these."""

import pytest
import torch

from tests.engines.served_trials import same


@pytest.mark.gpu
@pytest.mark.parametrize("level", [1, 2])
def test_sleep_gives_memory_back_and_the_weights_return(start, level):
    trial = start(sleep=True, sleep_level=level, memory_fraction=0.2, kv_cache_gb=None)
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
