"""`lightrft` without a command, and what all commands share."""

import subprocess
import sys

import pytest
from lightrft_core import __version__
from lightrft_core.cli.main import COMMANDS, run


def test_the_version_is_printed(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"lightrft {__version__}\n"


@pytest.mark.parametrize("command", [[], ["train"], ["runs"], ["runs", "list"], ["config", "show"]])
def test_a_short_h_asks_for_help(capsys, command):
    assert run([*command, "-h"]) == 0
    assert "Usage: lightrft" in capsys.readouterr().out


def test_help_lists_every_command(capsys):
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)


def test_a_misspelt_command_is_a_user_error_with_a_suggestion(capsys):
    assert run(["trian"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["config show quickstart --sources", "train quickstart --dry-run"])
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path, command):
    words = [sys.executable, "-u", "-m", "lightrft_core.cli.main", *command.split()]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
    assert (process.returncode, "Traceback" in err) == (0, False)


def test_evaluating_what_does_not_exist_says_what_may_stand_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["eval", "quikstart"]) == 2
    err = capsys.readouterr().err
    assert "quikstart: no such run, run file or recipe. Did you mean 'quickstart'?" in err
    assert "`lightrft runs list` shows the runs." in err
