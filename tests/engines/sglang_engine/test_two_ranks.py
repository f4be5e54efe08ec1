"""Two ranks under torchrun that share one copy of the model, and two as clients of one server."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.engines import served_trials

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
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.engines.sglang_engine.two_ranks", str(folder), str(tmp_path), json.dumps(options)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["wrong"] == second["wrong"] == []
    assert max(first["gap"], second["gap"]) < 1e-4
    assert [*first["tokens"], *second["tokens"]] == alone(folder, tmp_path)
    assert first["sum"] == second["sum"] == [2.0]
