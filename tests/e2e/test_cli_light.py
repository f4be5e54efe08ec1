"""The command line answers quickly: what needs no model loads none of the heavy packages."""

import os
import resource
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "vllm", "numpy", "matplotlib", "ray")
REPORT = """
import sys
from lightrft_core.cli.main import run
code = run(sys.argv[1:])
print("loaded:", [name for name in %r if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["train", "--help"],
        ["plugins", "list"],
        ["config", "show", "quickstart"],
        ["runs", "list"],
        ["launch", "slurm", "--help"],
        ["serve", "--help"],
        ["chat", "--help"],
    ],
)
def test_commands_about_no_model_load_neither_torch_nor_transformers(tmp_path, words):
    command = [sys.executable, "-c", REPORT % (HEAVY,), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "loaded: []" in done.stderr
    assert done.stdout.strip()


def test_an_unknown_command_loads_nothing_heavy_and_is_named(tmp_path):
    command = [sys.executable, "-c", REPORT % (HEAVY,), "trian"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "trian" in done.stderr
    assert "loaded: []" in done.stderr


def test_help_takes_less_than_0_4_seconds_of_cpu(tmp_path):
    assert any(_cpu_seconds_of_help(tmp_path) < 0.4 for _ in range(10))  # other work on the machine slows some


def _cpu_seconds_of_help(folder) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "lightrft_core.cli.main", "--help"]
    subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=60, env=dict(os.environ))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
