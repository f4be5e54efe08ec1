"""A reward in a worker process: whatever it does, its neighbours are scored and nothing is left behind."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lightrft_core.data import Media, Prompt, ScoreRequest
from lightrft_core.errors import UserError
from lightrft_core.isolation import MAX_FAILURES_IN_A_ROW, IsolatedReward, WorkerSpec
from lightrft_core.sections import RewardSection

TIMEOUT = 0.4

MISBEHAVING = """
import ctypes, os, subprocess, sys, time
from lightrft_core.data import Score

class Misbehaving:
    def __init__(self, config):
        pass

    def score(self, requests):
        return [self.one(request) for request in requests]

    def one(self, request):
        deed = request.response
        match deed:
            case "raise": raise ValueError("no such thing")
            case "sleep": time.sleep(1000)
            case "loop":
                while True: pass
            case "c-loop": return 9**9**9
            case "bomb": return len([bytearray(10**7) for _ in range(10**6)])
            case "exit": os._exit(0)
            case "sys-exit": sys.exit(3)
            case "segfault": ctypes.string_at(0)
            case "flood":
                while True: print("x" * 1000)
            case "print": print("{broken json")
            case "fork":
                subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
                open(request.prompt.id, "w").close()
                time.sleep(1000)
            case "nan": return float("nan")
            case "inf": return float("-inf")
            case "none": return None
            case "text": return "1.0"
            case "part": return Score(1.0, parts={"accuracy": float("nan")})
            case "reason": return Score(None, reason="cannot tell")
            case "list": return [1.0]
            case "env": return Score(1.0, parts={name: 1.0 for name in os.environ})
            case "pid": return float(os.getpid())
            case "media": return float(len(request.prompt.media) and len(request.prompt.media[0].source))
            case "true": return True
            case "slow": time.sleep(0.25)
        return 1.0

class Short(Misbehaving):
    def score(self, requests):
        return [1.0] * (len(requests) + 1)

class Whole(Misbehaving):
    def score(self, requests):
        return [float(len(requests))] * len(requests) if requests[0].response == "count" else super().score(requests)

class Broken:
    def __init__(self, config):
        raise RuntimeError("no model here")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "misbehaving.py"
    path.write_text(MISBEHAVING)
    return path


@pytest.fixture
def make(file: Path) -> Iterator:
    made: list[IsolatedReward] = []

    def build(name: str = "Misbehaving", *, batches: bool = False, media: bool = False, **options) -> IsolatedReward:
        config = RewardSection(**{"timeout": TIMEOUT, **options})
        spec = WorkerSpec("odd", f"{file}:{name}", "lightrft_core.sections:RewardSection", config, batches, media)
        made.append(IsolatedReward(spec))
        made[-1].start()
        return made[-1]

    yield build
    for reward in made:
        reward.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Iterator[IsolatedReward]:
    """One reward for many tests: a worker that is replaced costs a start, one that survives does not."""
    path = tmp_path_factory.mktemp("shared") / "misbehaving.py"
    path.write_text(MISBEHAVING)
    config = RewardSection(timeout=TIMEOUT)
    reward = IsolatedReward(WorkerSpec("odd", f"{path}:Misbehaving", "lightrft_core.sections:RewardSection", config))
    yield reward
    reward.close()


def requests(*deeds: str, prompt: Prompt | None = None) -> list[ScoreRequest]:
    prompt = prompt or Prompt("p", ({"role": "user", "content": "?"},))
    return [ScoreRequest(deed, (1, 2), prompt) for deed in deeds]


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("raise", "raised ValueError: no such thing"),
        ("sys-exit", "raised SystemExit: 3"),
        ("nan", "returned nan"),
        ("inf", "returned -inf"),
        ("none", "returned None"),
        ("text", "returned '1.0' (str), expected a number"),
        ("list", "returned [1.0] (list), expected a number"),
        ("part", "returned nan for its part 'accuracy'"),
        ("reason", "cannot tell"),
        ("loop", "took longer than 0.4 s (its `timeout`)"),
        ("c-loop", "took longer than 0.4 s (its `timeout`)"),
        ("flood", "took longer than 0.4 s (its `timeout`)"),
        ("exit", "ended its process with exit code 0"),
        ("segfault", "died of SIGSEGV"),
    ],
)
def test_a_bad_row_is_unscored_with_its_reason_and_its_neighbours_are_scored(shared, deed, reason):
    before, bad, after = shared.score(requests("fine", deed, "fine"))
    assert (before.value, after.value) == (1.0, 1.0)
    assert bad.value is None
    assert bad.reason == reason


def test_a_batch_that_fails_is_tried_row_by_row_and_the_bad_row_is_named(make, caplog):
    reward = make("Whole", batches=True, timeout=0.2)
    for deed, reason in (
        ("raise", "raised ValueError: no such thing"),
        ("loop", "took longer than 0.2 s"),
        ("exit", "exit code 0"),
    ):
        before, bad, after = reward.score(requests("fine", deed, "fine"))
        assert (before.value, bad.value, after.value) == (1.0, None, 1.0)
        assert reason in bad.reason
    assert "reward 'odd': a batch of 3 took longer than 0.6 s (its `timeout`); trying them singly" in caplog.text


def test_a_memory_bomb_meets_its_limit(make):
    scores = make(memory_gb=0.5, timeout=10).score(requests("bomb", "fine"))
    assert [score.value for score in scores] == [None, 1.0]
    assert scores[0].reason.startswith("raised MemoryError")


def test_a_hang_costs_one_timeout_and_a_new_worker(make):
    reward = make()
    start = time.monotonic()
    scores = reward.score(requests("loop", *["fine"] * 40))
    assert time.monotonic() - start < TIMEOUT + 2
    assert [score.value for score in scores] == [None] + [1.0] * 40


def test_a_call_of_the_wrong_length_is_unscored(make):
    assert make("Short").score(requests("a"))[0].reason == "returned 2 scores for 1 samples"


def test_a_batch_is_scored_in_one_call_where_the_reward_asks_for_it(make):
    assert [score.value for score in make("Whole", batches=True).score(requests("count", "b", "c"))] == [3.0] * 3
    assert [score.value for score in make("Whole").score(requests("count", "b", "c"))] == [1.0] * 3


def test_the_limit_holds_for_each_row_and_not_for_their_sum(make):
    assert [score.value for score in make().score(requests("slow", "slow", "slow"))] == [1.0] * 3


def test_a_reward_that_only_hangs_is_given_up(make):
    scores = make(timeout=0.05).score(requests(*["loop"] * 40))
    tried = [score for score in scores if "took longer" in score.reason and not score.reason.startswith("not tried")]
    assert len(tried) == MAX_FAILURES_IN_A_ROW
    assert scores[-1].reason.startswith("not tried after 8 failures in a row")


def test_prints_do_not_break_the_protocol_and_are_logged(make, caplog):
    with caplog.at_level("INFO"):
        assert make().score(requests("print"))[0].value == 1.0
    assert "reward 'odd' prints: {broken json" in caplog.text


def test_booleans_are_numbers(make):
    assert make().score(requests("true"))[0].value == 1.0


def test_workers_stay_between_calls_and_several_share_the_work(make):
    reward = make(num_workers=2)
    first, second = (reward.score(requests(*["pid"] * 64)) for _ in range(2))
    assert 1 <= len({score.value for score in first + second}) <= 2


def test_a_worker_that_died_between_calls_is_replaced(make):
    reward = make()
    pid = int(reward.score(requests("pid"))[0].value)
    os.kill(pid, 9)
    while Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        time.sleep(0.01)
    assert reward.score(requests("fine"))[0].value == 1.0


def test_a_worker_sees_no_secrets_but_what_is_named(make, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("JUDGE_KEY", "wanted")
    seen = make(env=("JUDGE_KEY",)).score(requests("env"))[0].parts
    assert "WANDB_API_KEY" not in seen
    assert {"JUDGE_KEY", "PATH"} <= set(seen)


def test_media_travel_only_where_they_are_needed(make):
    prompt = Prompt("p", ({"role": "user", "content": "<image>"},), media=(Media("image", b"\x00\xff\n"),))
    assert make(media=True).score(requests("media", prompt=prompt))[0].value == 3.0
    assert make().score(requests("media", prompt=prompt))[0].value == 0.0


def test_no_request_needs_no_worker():
    reward = IsolatedReward(
        WorkerSpec("odd", "nowhere:Nothing", "lightrft_core.sections:RewardSection", RewardSection())
    )
    assert reward.score([]) == []


def test_a_reward_that_cannot_be_built_is_a_user_error(make):
    with pytest.raises(UserError, match="reward 'odd': raised RuntimeError: no model here"):
        make("Broken")


def test_a_reward_that_cannot_be_found_is_a_user_error(make):
    with pytest.raises(UserError, match="reward 'odd': raised AttributeError"):
        make("Missing")


def test_nothing_is_left_of_a_reward_that_starts_detached_processes(make, tmp_path):
    mark = tmp_path / "started"
    prompt = Prompt(str(mark), ({"role": "user", "content": "?"},))
    reward = make(timeout=2)
    pid = int(reward.score(requests("pid"))[0].value)
    reward.score(requests("fork", prompt=prompt))
    assert mark.exists()
    assert living_descendants_of_session(pid) == []


def test_workers_die_with_their_parent(file, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(f"""
import os
from lightrft_core.data import Prompt, ScoreRequest
from lightrft_core.isolation import IsolatedReward, WorkerSpec
from lightrft_core.sections import RewardSection
spec = WorkerSpec("odd", {str(file) + ":Misbehaving"!r}, "lightrft_core.sections:RewardSection", RewardSection())
reward = IsolatedReward(spec)
print(int(reward.score([ScoreRequest("pid", (), Prompt("p", ()))])[0].value), flush=True)
os.kill(os.getpid(), 9)
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    pid = int(done.stdout)
    deadline = time.monotonic() + 5
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(pid)


def test_closing_leaves_no_process(make):
    reward = make(num_workers=2)
    pids = {int(score.value) for score in reward.score(requests(*["pid"] * 8))}
    reward.close()
    assert not any(is_alive(pid) for pid in pids)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def living_descendants_of_session(session: int) -> list[int]:
    """Processes whose command line is the detached sleeper, or that belong to the worker's session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if fields[0] != "Z" and (int(fields[3]) == session or b"import time; time.sleep(1000)" in command):
            found.append(int(stat.parent.name))
    return found
