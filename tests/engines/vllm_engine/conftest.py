"""Engines that many tests share: starting vLLM costs seconds, a server tens of them."""

from pathlib import Path

import pytest

from tests.engines.served_fixtures import *  # noqa: F403  # each is a fixture of this engine
from tests.engines.served_trials import Trial
from tests.engines.vllm_engine import opening

SIZES = {"hidden_size": 128, "head_dim": 32, "num_hidden_layers": 2}  # vLLM's attention on CPUs wants heads of 32


@pytest.fixture(scope="session")
def build():
    return opening.build


@pytest.fixture(scope="session")
def folder(kit, tmp_path_factory) -> Path:
    return kit.folder(tmp_path_factory.mktemp("vllm") / "qwen2", "qwen2", scale=2.0, **SIZES)


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
