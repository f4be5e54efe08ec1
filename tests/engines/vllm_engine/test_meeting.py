"""Ranks that share a model meet in shared memory that is theirs alone, and leave none of it behind."""

from pathlib import Path

import pytest

from tests.engines.served_ranks import on_two_ranks

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
SHARED = Path("/dev/shm")


@pytest.fixture
def left_over():
    """Files by the name that vLLM itself gives in every run, as a killed run leaves them."""
    ours = [path for rank in (0, 1) if not (path := SHARED / f"-tp:0-[0-1]-cpushm_{rank}").exists()]
    for path in ours:
        path.touch()
    yield
    for path in ours:
        path.unlink()


def test_two_groups_meet_at_the_same_time_beside_what_a_killed_run_left(left_over, tmp_path):
    first, second = on_two_ranks("tests.engines.vllm_engine.meeting", tmp_path)
    assert first["names"] == second["names"]
    assert len(set(first["names"])) == 2
    expected = {f"{SHARED / name}_{rank} (deleted)" for name in first["names"] for rank in (0, 1)}
    assert {path for path in first["held"] if "lightrft-" in path} == expected
    assert not [path for path in SHARED.iterdir() if path.name.startswith(tuple(first["names"]))]
