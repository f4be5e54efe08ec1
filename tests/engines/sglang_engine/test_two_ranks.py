"""Two ranks under torchrun that share one copy of the model, and two as clients of one server."""

import pytest

from tests.engines import served_trials
from tests.engines.served_ranks import check_two_ranks

pytestmark = [pytest.mark.sglang, pytest.mark.slow]


def alone(folder, run_dir):
    """What the embedded engine writes for all requests, with the weights that each rank will have."""
    from lightrft_engines.embedded import EmbeddedEngine
    from lightrft_engines.embedded_config import EmbeddedConfig

    trial = served_trials.build(EmbeddedEngine, EmbeddedConfig(), folder, run_dir)
    trial.change(1.1)
    return [[list(one.token_ids) for one in group] for group in trial.engine.generate(trial.requests())]


@pytest.mark.parametrize("kind", ["one copy", "clients"])
def test_ranks_write_what_one_process_writes_with_weights_in_sync(kind, request, folder, tmp_path):
    options = {"tensor_parallel": 2}
    if kind == "clients":
        options = {"mode": "server", "url": request.getfixturevalue("server").engine._backend._client.url}
    expected = alone(folder, tmp_path)
    check_two_ranks("tests.engines.sglang_engine.two_ranks", folder, tmp_path, options, expected)
