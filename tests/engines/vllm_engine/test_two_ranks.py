"""Two ranks under torchrun: sharing one copy of the model, with a copy each, and as clients of one server."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

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
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.engines.vllm_engine.two_ranks", str(folder), str(tmp_path), json.dumps(options)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["wrong"] == second["wrong"] == []
    assert max(first["gap"], second["gap"]) < 1e-4
    assert [*first["tokens"], *second["tokens"]] == alone
    assert first["sum"] == second["sum"] == [2.0]
