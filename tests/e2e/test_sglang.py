"""The quickstart learns with a real SGLang, started beside it and in a server, as with the embedded engine."""

import pytest

from tests.e2e.test_vllm import STEPS, metrics_in, rewards_of
from tests.engines.sglang_engine.opening import use_stand_in

pytestmark = [pytest.mark.sglang, pytest.mark.slow]


@pytest.mark.parametrize("mode", ["colocated", "server"])
def test_the_quickstart_learns(lightrft, tmp_path, mode):
    use_stand_in()  # by PYTHONPATH, which the run inherits
    done = rewards_of(lightrft, "engine.use=sglang", f"engine.mode={mode}")
    assert "self-test passed" in done.stdout + done.stderr
    rewards = [row["reward/mean"] for row in metrics_in(tmp_path)]
    assert len(rewards) == STEPS
    assert sum(rewards[:3]) / 3 < 0.5
    assert sum(rewards[-3:]) / 3 > 0.7
    assert max(row["gap/logprob_max_abs"] for row in metrics_in(tmp_path)) < 1e-3
