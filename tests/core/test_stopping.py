import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
from lightrft_core.errors import UserError
from lightrft_core.stopping import Stopper, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("3h50m", 13800), ("1d", 86400), ("1.5h", 5400), ("1d2h3m4s", 93784), ("0.5s", 0.5)],
)
def test_durations_are_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "h", "3h 50m", "3x", "-5m", "0s", "5m?"])
def test_what_is_no_duration_is_refused_with_examples(text):
    with pytest.raises(UserError, match=r"run\.max_time: .* is not a duration.*3h50m"):
        parse_duration(text)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_becomes_a_request(number, capfd):
    with Stopper() as stopper:
        assert stopper.requested is None
        os.kill(os.getpid(), number)
        assert stopper.requested == number.name
    assert f"{number.name}: finishing this phase, then saving" in capfd.readouterr().err


def test_the_former_handlers_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with Stopper():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_the_second_signal_ends_the_process_at_once():
    code = """
        import os, signal
        from lightrft_core.stopping import Stopper
        with Stopper():
            os.kill(os.getpid(), signal.SIGINT)
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                print("cleaned up")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stdout == ""
    assert done.stderr.strip().splitlines()[-1] == "SIGTERM: ending at once; nothing more is saved"


def test_a_stop_file_asks_for_a_stop_and_says_why(tmp_path):
    file = tmp_path / "STOP"
    with Stopper(stop_file=file) as stopper:
        assert stopper.requested is None
        file.touch()
        assert stopper.requested == "asked by its STOP file"
        file.write_text("SIGTERM\n")
        assert stopper.requested == "SIGTERM"


def test_in_another_thread_it_takes_the_stop_file_and_leaves_signals_alone(tmp_path):
    (tmp_path / "STOP").touch()
    before, found = signal.getsignal(signal.SIGTERM), []

    def work():
        with Stopper(stop_file=tmp_path / "STOP") as stopper:
            found.append(stopper.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["asked by its STOP file"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_that_a_launcher_repeats_within_the_grace_counts_as_the_same():
    now = [0.0]
    with Stopper(grace=1.0, clock=lambda: now[0]) as stopper:
        os.kill(os.getpid(), signal.SIGINT)
        now[0] = 0.9
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopper.requested == "SIGINT"


def test_the_time_limit_leaves_room_for_one_more_step_and_a_save():
    now = [100.0]
    stopper = Stopper(max_time=60, clock=lambda: now[0])
    stopper.note_step(10)
    stopper.note_step(4)
    stopper.note_save(5)
    now[0] = 100 + 60 - 1.2 * 15 - 0.1
    assert stopper.requested is None
    now[0] += 0.2
    assert stopper.requested == "time limit"


def test_a_save_beside_training_takes_off_what_it_still_needs():
    now = [0.0]
    stopper = Stopper(max_time=1000, clock=lambda: now[0])
    stopper.note_save(100)
    stopper.note_save_begun()
    now[0] = 30
    assert stopper.seconds_left == pytest.approx(1000 - 30 - 1.2 * (100 + 70))
    stopper.note_save(90)
    assert stopper.seconds_left == pytest.approx(1000 - 30 - 1.2 * 100)


def test_a_first_save_beside_training_shows_how_long_one_takes_while_it_goes_on():
    now = [0.0]
    stopper = Stopper(max_time=1000, clock=lambda: now[0])
    stopper.note_save_begun()
    now[0] = 250
    assert stopper.seconds_left == pytest.approx(1000 - 250 - 1.2 * 250)


def test_without_a_limit_time_never_ends_a_run():
    stopper = Stopper()
    assert stopper.seconds_left == float("inf")
    assert stopper.requested is None
