"""Engines that many tests share: starting vLLM costs seconds, a server tens of them."""

from pathlib import Path

import pytest

from tests.engines.served_trials import Trial
from tests.engines.vllm_engine.opening import build

SIZES = {"hidden_size": 128, "head_dim": 32, "num_hidden_layers": 2}  # vLLM's attention on CPUs wants heads of 32


@pytest.fixture(scope="session")
def folder(kit, tmp_path_factory) -> Path:
    return kit.folder(tmp_path_factory.mktemp("vllm") / "qwen2", "qwen2", scale=2.0, **SIZES)


@pytest.fixture(scope="session")
def start(folder, tmp_path_factory):
    """Builds a trial; engines end with the session."""
    trials = []

    def begin(path: Path | None = None, **options) -> Trial:
        trials.append(build(path or folder, tmp_path_factory.mktemp("run"), **options))
        return trials[-1]

    yield begin
    for trial in trials:
        trial.engine.close()


@pytest.fixture(scope="session")
def colocated_trials() -> list[Trial]:
    return []


@pytest.fixture
def colocated(start, colocated_trials) -> Trial:
    """One for all tests; a new one where a test closed an engine, which ends what vLLM has of a process."""
    from vllm.distributed.parallel_state import model_parallel_is_initialized

    if not colocated_trials or not model_parallel_is_initialized():
        colocated_trials.append(start())
    return colocated_trials[-1]


@pytest.fixture(scope="session")
def server(start) -> Trial:
    return start(mode="server", restart=True, bucket_mb=1)


@pytest.fixture(params=["colocated", "server"])
def trial(request) -> Trial:
    """The engine in each of its modes."""
    return request.getfixturevalue(request.param)
