"""How the ranks of a machine ended, from torchrun's account and their own notes; tests/e2e has the real processes."""

import json
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from lightrft_core.failures import Failure
from lightrft_core.rundir import RunDir
from lightrft_core.torchrun import Ranks, main


@dataclass
class Exit:
    """A rank's end, in torchrun's words."""

    exitcode: int
    timestamp: int = 100


class Killed(Exception):
    """Stands for torchrun's `ChildFailedError`."""

    def __init__(self, failures):
        self.failures = failures


class Signalled(Exception):
    """Stands for torchrun's `SignalException`."""

    def __init__(self, sigval):
        self.sigval = sigval


LOST = Failure(0, "a", 1, "another rank ended", 99.9, is_consequence=True)


@pytest.fixture
def ranks(tmp_path, monkeypatch):
    monkeypatch.delenv("LIGHTRFT_REPORTED", raising=False)
    return Ranks(RunDir.create(tmp_path, "one"), tmp_path / "noted")


@pytest.fixture
def ends(ranks, monkeypatch, capsys):
    """Lets torchrun end so, after ranks noted these failures; returns exit code and what was printed."""

    def end(error, *noted, attempt=0):
        for failure in noted:
            folder = ranks.folder / f"id_x/attempt_{attempt}/{failure.rank}"
            folder.mkdir(parents=True)
            (folder / "error.json").write_text(failure.to_json())

        def torchrun(args):
            raise error

        monkeypatch.setitem(sys.modules, "torch.distributed.run", SimpleNamespace(main=torchrun))
        monkeypatch.setattr("logging.disable", lambda level: None)
        return ranks.run([]), capsys.readouterr().err

    return end


def test_a_killed_rank_is_the_cause_though_the_others_noted_lost_connections(ends, ranks):
    code, said = ends(Killed({0: Exit(1), 1: Exit(-9)}), LOST)
    assert code == 1
    assert "error: rank 1 on " in said
    assert "killed by signal 9 (SIGKILL). That is often the kernel's memory killer" in said
    assert (ranks.run_dir.read_status().state, "signal 9" in ranks.run_dir.read_status().reason) == ("failed", True)


def test_what_torchrun_kills_after_a_failure_is_no_cause(ends):
    cause = Failure(2, "a", 1, "the disk is full.", 99.5)
    code, said = ends(Killed({0: Exit(-15), 1: Exit(-9, 130), 2: Exit(1)}), cause)
    assert (code, said) == (1, "error: rank 2 on a: the disk is full.\n")


def test_an_error_of_the_same_second_came_before_a_kill(ends):
    cause = Failure(2, "a", 1, "the disk is full.", 100.9)
    assert "the disk is full" in ends(Killed({1: Exit(-6), 2: Exit(1)}), cause)[1]


def test_what_all_ranks_say_is_said_without_a_rank(ends):
    same = [Failure(rank, "a", 1, "the reward is broken.", 99.0) for rank in (0, 1)]
    assert ends(Killed({0: Exit(1), 1: Exit(1)}), *same) == (1, "error: the reward is broken.\n")


def test_a_stop_of_all_ranks_is_silent_and_keeps_its_code(ends):
    stops = [Failure(rank, "a", 75, "stopped after step 3", 99.0) for rank in (0, 1)]
    assert ends(Killed({0: Exit(75), 1: Exit(75)}), *stops) == (75, "")
    assert ends(Signalled(15)) == (75, "")


def test_a_rank_that_ends_without_a_note_is_told_with_its_code(ends):
    code, said = ends(Killed({1: Exit(7)}))
    assert code == 1
    assert "it ended without a word, with exit code 7." in said


def test_notes_of_an_earlier_attempt_do_not_count(ends, ranks):
    ends(Killed({1: Exit(1)}), Failure(1, "a", 1, "the first attempt.", 50.0))
    said = ends(Killed({1: Exit(1)}), Failure(1, "a", 1, "the second attempt.", 99.0), attempt=1)[1]
    assert said == "error: rank 1 on a: the second attempt.\n"


def test_after_a_signal_a_run_that_was_done_is_done(ends, ranks):
    assert ends(Signalled(15)) == (143, "")
    ranks.run_dir.write_status("done", exit_code=0)
    assert ends(Signalled(15)) == (0, "")


def test_ranks_that_never_met_are_a_matter_of_the_machines(ends):
    with pytest.raises(Exception, match=r"could not bring the ranks together: TimeoutError: nobody came.*first one"):
        ends(TimeoutError("nobody came"))


def test_without_a_run_it_says_how_it_is_called(capsys, tmp_path):
    assert main([]) == 2
    assert "python -m lightrft_core.torchrun RUN --nnodes=2" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_a_note_is_torchruns_error_file(ranks):
    text = LOST.to_json()
    assert json.loads(text)["message"]["message"] == "another rank ended"
    assert Failure.from_json(text) == LOST
