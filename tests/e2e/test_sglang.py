"""The quickstart learns with a real SGLang, started beside it and in a server, as with the embedded engine."""

from pathlib import Path

import pytest

from tests.e2e.test_vllm import check_learning
from tests.engines.sglang_engine.opening import use_stand_in

pytestmark = [pytest.mark.sglang, pytest.mark.slow]


def shared_files():
    """Files of SGLang in the memory that processes of this machine share."""
    return set(Path("/dev/shm").glob("sgl*"))


@pytest.mark.parametrize("mode", ["colocated", "server"])
def test_the_quickstart_learns_and_leaves_no_memory_behind(lightrft, tmp_path, mode):
    use_stand_in()  # by PYTHONPATH, which the run inherits
    before = shared_files()
    check_learning(lightrft, tmp_path, "engine.use=sglang", f"engine.mode={mode}")
    assert shared_files() <= before
