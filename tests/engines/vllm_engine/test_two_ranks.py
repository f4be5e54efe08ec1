"""Two ranks under torchrun: sharing one copy of the model, with a copy each, and as clients of one server."""

import pytest

from tests.engines.served_ranks import check_two_ranks

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def alone(start):
    """What one process with the same weights writes for all requests."""
    trial = start()
    trial.change(1.1)
    trial.engine.update_weights(trial.strategy.weights, 2)
    answers = trial.engine.generate(trial.requests())
    return [[list(one.token_ids) for one in group] for group in answers]


@pytest.mark.parametrize(
    "options",
    [{"tensor_parallel": 2, "time_limit": 100}, {"tensor_parallel": 1}, {"mode": "server"}],
    ids=["one copy", "a copy each", "one server"],
)
def test_ranks_write_what_one_process_writes_with_weights_in_sync(options, folder, alone, tmp_path):
    check_two_ranks("tests.engines.vllm_engine.two_ranks", folder, tmp_path, options, alone)
