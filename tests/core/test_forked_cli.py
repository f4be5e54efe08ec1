"""A fork of `tests/forked_cli.py` does what a fresh process does, so that tests may take the one for the other."""

import signal

import pytest


@pytest.mark.parametrize(
    "words",
    [("--version",), ("config", "show", "quickstart"), ("train", "quickstrat"), ("runs", "list"), ("no-such-command",)],
)
def test_it_says_what_a_fresh_process_says(lightrft, forked, words):
    fresh, fork = lightrft(*words), forked(*words)
    assert (fork.returncode, fork.stdout, fork.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr)


def test_it_finds_the_plugins_of_its_environment_and_the_next_one_does_not(lightrft, forked, plugin_site):
    plugin_site.add_broken()
    env = {"PYTHONPATH": str(plugin_site.path)}
    listed = forked("plugins", "list", env=env).stdout
    assert "bad-import" in listed
    assert listed == lightrft("plugins", "list", env=env).stdout
    assert "bad-import" not in forked("plugins", "list").stdout


@pytest.mark.parametrize(
    ("deed", "number"),
    [("os.kill(os.getpid(), signal.SIGKILL)", signal.SIGKILL), ("signal.pause()", signal.SIGALRM)],
    ids=["killed", "out_of_time"],
)
def test_a_signal_that_ends_it_is_its_exit_code(forked, tmp_path, deed, number):
    (tmp_path / "end.py").write_text(f"import os, signal\nLIGHTRFT_API = 1\n{deed}\n")
    assert forked("plugins", "check", "end.py", timeout=2).returncode == -number
