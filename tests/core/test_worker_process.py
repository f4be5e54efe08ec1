"""The worker process itself: light, and without the parent's secrets."""

import subprocess
import sys

from lightrft_core.worker_process import scrubbed


def test_the_environment_keeps_only_harmless_names():
    kept = scrubbed({"PATH": "/bin", "LC_ALL": "C", "HF_TOKEN": "x", "MASTER_ADDR": "y", "KEY": "z"}, ["KEY"])
    assert kept == {"PATH": "/bin", "LC_ALL": "C", "KEY": "z", "OMP_NUM_THREADS": "1"}


def test_a_worker_imports_neither_torch_nor_the_command_line():
    code = (
        "import sys, lightrft_core.reward_worker; print([m for m in ('torch', 'numpy', 'typer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
