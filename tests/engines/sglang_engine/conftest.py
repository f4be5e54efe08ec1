"""Engines that many tests share: starting SGLang takes tens of seconds in either mode."""

from pathlib import Path

import pytest

from tests.engines.served_fixtures import *  # noqa: F403  # each is a fixture of this engine
from tests.engines.served_trials import Trial
from tests.engines.sglang_engine import opening

SIZES = {"intermediate_size": 64}  # on CPUs SGLang widens others to a multiple of 32


@pytest.fixture(scope="session")
def build():
    return opening.build


@pytest.fixture(scope="session")
def folder(kit, tmp_path_factory) -> Path:
    return kit.folder(tmp_path_factory.mktemp("sglang") / "qwen2", "qwen2", scale=2.0, **SIZES)


@pytest.fixture(scope="session")
def tied_folder(kit, tmp_path_factory) -> Path:
    sizes = {**SIZES, "tie_word_embeddings": True}
    return kit.folder(tmp_path_factory.mktemp("sglang") / "tied", "qwen2", scale=2.0, **sizes)


@pytest.fixture(scope="session")
def colocated(start, tied_folder) -> Trial:
    """Of a model whose embeddings are tied; its vocabulary of 97 is padded either way."""
    return start(tied_folder, bucket_mb=1)
