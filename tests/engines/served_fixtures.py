"""Fixtures for every engine with a process of its own; a `conftest` imports them beside its `build` and `folder`."""

from pathlib import Path

import pytest

from tests.engines.served_trials import Trial


@pytest.fixture(scope="session")
def start(build, folder, tmp_path_factory):
    """Builds a trial; engines end with the session."""
    trials = []

    def begin(path: Path | None = None, **options) -> Trial:
        trials.append(build(path or folder, tmp_path_factory.mktemp("run"), **options))
        return trials[-1]

    yield begin
    for trial in trials:
        trial.engine.close()


@pytest.fixture(scope="session")
def server(start) -> Trial:
    return start(mode="server", restart=True, bucket_mb=1)


@pytest.fixture(params=["colocated", "server"])
def trial(request) -> Trial:
    """The engine in each of its modes."""
    return request.getfixturevalue(request.param)
