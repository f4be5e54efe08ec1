"""Engines that many tests share: starting SGLang takes tens of seconds in either mode."""

from pathlib import Path

import pytest

from tests.engines.served_trials import Trial
from tests.engines.sglang_engine.opening import build

SIZES = {"intermediate_size": 64}  # on CPUs SGLang widens others to a multiple of 32


@pytest.fixture(scope="session")
def folder(kit, tmp_path_factory) -> Path:
    return kit.folder(tmp_path_factory.mktemp("sglang") / "qwen2", "qwen2", scale=2.0, **SIZES)


@pytest.fixture(scope="session")
def tied_folder(kit, tmp_path_factory) -> Path:
    sizes = {**SIZES, "tie_word_embeddings": True}
    return kit.folder(tmp_path_factory.mktemp("sglang") / "tied", "qwen2", scale=2.0, **sizes)


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
def colocated(start, tied_folder) -> Trial:
    """Of a model whose embeddings are tied; its vocabulary of 97 is padded either way."""
    return start(tied_folder, bucket_mb=1)


@pytest.fixture(scope="session")
def server(start) -> Trial:
    return start(mode="server", restart=True, bucket_mb=1)


@pytest.fixture(params=["colocated", "server"])
def trial(request) -> Trial:
    """The engine in each of its modes."""
    return request.getfixturevalue(request.param)
