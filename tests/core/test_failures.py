"""What ended a rank: noted where torchrun looks, the first one first, lost connections last."""

import json
from dataclasses import replace

import pytest
from lightrft_core import failures
from lightrft_core.checkpoints import Checkpoints
from lightrft_core.errors import RankLost, RunFailed, StoppedEarly, UserError
from lightrft_core.failures import Failure, first, noted, paragraph
from lightrft_core.rundir import RunDir

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:28079."
FAILURE = Failure(3, "node7", 1, "the disk is full.", 100.0)


@pytest.fixture
def error_file(tmp_path, monkeypatch):
    """What torchrun gives to rank 3 of 8."""
    path = tmp_path / "error.json"
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "8"), ("TORCHELASTIC_ERROR_FILE", str(path))):
        monkeypatch.setenv(name, value)
    return path


@pytest.fixture
def run_dir(tmp_path):
    return RunDir.create(tmp_path, "one")


def test_what_ends_a_rank_is_left_in_torchruns_error_file(error_file):
    with pytest.raises(RunFailed), noted():
        raise RunFailed("the disk is full", hint="Make room.")
    failure = Failure.from_json(error_file.read_text())
    assert (failure.rank, failure.exit_code, failure.text) == (3, 1, "the disk is full. Make room.")
    assert not (failure.is_crash or failure.is_consequence)


def test_torchrun_reads_the_same_file(error_file):
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    failures.note(RunFailed("the disk is full"))
    read = ProcessFailure(local_rank=3, pid=1, exitcode=1, error_file=str(error_file))
    assert read.message["message"] == "the disk is full"
    assert read.timestamp == int(Failure.from_json(error_file.read_text()).seconds)


def test_the_first_note_of_a_rank_counts(error_file):
    failures.note(UserError("first"))
    failures.note(RunFailed("second"))
    assert Failure.from_json(error_file.read_text()).text == "first"


def test_without_a_launcher_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    failures.note(RunFailed("alone"))
    assert list(tmp_path.iterdir()) == []
    assert not failures.is_reported()


def test_a_crash_is_told_in_one_line_with_its_place(error_file):
    with pytest.raises(ValueError, match="two"), noted():
        raise ValueError("two\n  lines")
    failure = Failure.from_json(error_file.read_text())
    assert failure.text.startswith("ValueError: two lines (test_failures.py:")
    assert failure.is_crash


def test_a_lost_connection_between_ranks_becomes_a_consequence(error_file):
    with (
        pytest.raises(RankLost, match=r"another rank ended or cannot be reached: RuntimeError: .*closed by peer"),
        noted(),
    ):
        raise RuntimeError(GLOO)
    assert Failure.from_json(error_file.read_text()).is_consequence


@pytest.mark.parametrize("error", [ConnectionResetError("Connection reset by peer"), RuntimeError("shapes differ")])
def test_other_errors_stay_what_they_are(error_file, error):
    with pytest.raises(type(error)), noted():
        raise error
    assert not Failure.from_json(error_file.read_text()).is_consequence


def test_alone_no_connection_can_be_lost(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError, match="gloo"), noted():
        raise RuntimeError(GLOO)


def test_the_first_error_is_the_earliest_that_is_no_consequence():
    lost = replace(FAILURE, seconds=1.0, is_consequence=True)
    later = replace(FAILURE, rank=5, seconds=101.0)
    assert first([lost, later, FAILURE]) == FAILURE
    assert first([lost]) == lost


@pytest.mark.parametrize(
    "text", ["", "{", json.dumps({"message": {"message": "of torch"}}), json.dumps({"lightrft": {}})]
)
def test_what_others_wrote_is_no_failure_of_ours(text):
    assert Failure.from_json(text) is None


def test_the_paragraph_names_the_rank_its_machine_and_its_output(run_dir):
    assert paragraph(FAILURE, run_dir) == "rank 3 on node7: the disk is full."
    run_dir.logs.mkdir()
    (run_dir.logs / "rank-00003.txt").write_text("Traceback")
    crash = replace(FAILURE, is_crash=True, text="ValueError: bad (reward.py:7)")
    assert paragraph(crash, run_dir) == (
        f"rank 3 on node7 failed with ValueError: bad (reward.py:7). Its output is in {run_dir.logs}/rank-00003.txt."
    )


def test_the_paragraph_says_how_to_go_on_where_there_is_a_checkpoint(run_dir):
    (run_dir.checkpoints / "step_000002").mkdir()
    assert paragraph(FAILURE, run_dir).endswith(f"Go on with: lightrft train --resume {run_dir.path}")


def test_the_paragraph_does_not_send_to_weights_that_no_run_goes_on_from(run_dir):
    Checkpoints(run_dir.checkpoints, 1).save(2, None, lambda folder: None)
    assert paragraph(FAILURE, run_dir) == "rank 3 on node7: the disk is full."


def test_a_users_mistake_is_told_as_it_is_for_all_ranks_have_it(run_dir):
    mistake = Failure.of(UserError("no such model.", where="model.path"))
    assert paragraph(mistake, run_dir) == "model.path: no such model."


def test_a_stop_keeps_its_own_exit_code():
    assert Failure.of(StoppedEarly("stopped after step 3")).exit_code == 75
