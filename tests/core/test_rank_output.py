"""Rank 0 prints to the terminal, each other rank to its own file, with a way to the terminal for what matters."""

import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
import os, sys
from pathlib import Path
from lightrft_core.errors import RunFailed
from lightrft_core.rank_output import own_output

folder, rank, terminal = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None
try:
    with own_output(folder, rank, terminal) as tell:
        print("from python")
        sys.stdout.flush()
        os.system("echo from a program; echo and its errors >&2")
        tell("told")
        raise {error}
except Exception as error:
    print("after", type(error).__name__)
"""


@pytest.fixture
def ended(tmp_path):
    """Runs the program as a rank; returns what the terminal got."""

    def run(rank: int, *words: object, error: str = "RunFailed('it failed')") -> str:
        code = textwrap.dedent(PROGRAM).replace("{error}", error)
        command = [sys.executable, "-c", code, str(tmp_path / "logs"), str(rank), *map(str, words)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=True
        )
        return done.stdout

    return run


def test_rank_0_prints_to_the_terminal(ended, tmp_path):
    assert ended(0) == "from python\nfrom a program\nand its errors\ntold\nafter RunFailed\n"
    assert not (tmp_path / "logs").exists()


def test_other_ranks_print_to_their_file_and_tell_the_terminal(ended, tmp_path):
    assert ended(3) == "told\nafter RunFailed\n"
    text = (tmp_path / "logs/rank-00003.txt").read_text()
    assert text == "from python\nfrom a program\nand its errors\nerror: it failed\n"


def test_a_traceback_is_in_the_file_of_its_rank(ended, tmp_path):
    assert ended(2, error="ValueError('bad')") == "told\nafter ValueError\n"
    assert "Traceback" in (tmp_path / "logs/rank-00002.txt").read_text()


def test_a_file_can_stand_in_for_the_terminal(ended, tmp_path):
    terminal = tmp_path / "logs/rank-00000.txt"
    assert ended(0, terminal) == "after RunFailed\n"
    assert ended(1, terminal) == "after RunFailed\n"
    assert terminal.read_text() == "from python\nfrom a program\nand its errors\ntold\ntold\n"


def test_an_empty_file_is_not_left_behind(tmp_path):
    code = "from pathlib import Path; from lightrft_core.rank_output import own_output\n"
    code += f"with own_output(Path({str(tmp_path / 'logs')!r}), 1): pass"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert not (tmp_path / "logs").exists()
