"""The child side of an isolated reward: `python -m lightrft_core.reward_worker PARENT_PID`.

It holds one reward and answers jobs, one JSON line each way, in its main thread (so that a reward's own alarms work).
A row's answer announces the start of the next row: the parent's clock runs between lines. What the reward prints goes
to stderr; the pipe of the protocol is out of its reach.
"""

import contextlib
import ctypes
import faulthandler
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from lightrft_core.data import Score
from lightrft_core.errors import LightRFTError
from lightrft_core.loading import load_object
from lightrft_core.protocols import Json, Reward
from lightrft_core.reward_wire import decode_requests, encode_score
from lightrft_core.verdicts import as_score, as_scores, raised

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """Serve until the parent closes the pipe or dies."""
    _die_with(int(sys.argv[1]))
    faulthandler.enable()
    jobs, answers = _take_pipes()
    reward: Reward | None = None
    for line in jobs:
        message = json.loads(line)
        if reward is None:
            reward = _load(message, answers)
        elif message["batch"]:
            _answer_batch(reward, message, answers)
        else:
            _answer_rows(reward, message, answers)


def _die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent dies; orphans of the reward become our children, to be found."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, this goes first, not the trainer
    if os.getppid() != parent:
        sys.exit("the trainer has gone")


def _take_pipes() -> tuple[IO[str], IO[str]]:
    """Move the protocol to descriptors that children do not inherit; stdin becomes empty, stdout becomes stderr."""
    jobs = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return jobs, answers


def _load(message: Mapping[str, Json], answers: IO[str]) -> Reward:
    """Build the reward and say so; where it cannot be built, say why and leave."""
    sys.path.extend(entry for entry in message["sys_path"] if entry not in sys.path)
    if message["memory_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_AS, (message["memory_bytes"],) * 2)
    try:
        config = load_object(message["config_target"])(**message["config"])
        reward: Reward = load_object(message["target"])(config)
    except LightRFTError as error:
        _say(answers, {"refused": [error.what, error.where, error.hint]})
        raise SystemExit(0) from error
    except (Exception, SystemExit) as error:  # a stranger's module may even exit while it is imported
        _say(answers, {"refused": [_why(error), "", ""]})
        raise SystemExit(0) from error
    _say(answers, {"ready": True})
    return reward


def _answer_rows(reward: Reward, job: Mapping[str, Json], answers: IO[str]) -> None:
    for request in decode_requests(job):
        try:
            score = as_scores(reward.score([request]), 1)[0]
        except (Exception, SystemExit) as error:
            score = raised(error)
        _say(answers, {"scores": [encode_score(score)]})


def _answer_batch(reward: Reward, job: Mapping[str, Json], answers: IO[str]) -> None:
    requests = decode_requests(job)
    try:
        listed = list(reward.score(requests))
        if len(listed) != len(requests):
            _say(answers, {"spoilt": f"returned {len(listed)} scores for {len(requests)} samples"})
            return
        scores: list[Score] = [as_score(item) for item in listed]
    except (Exception, SystemExit) as error:
        _say(answers, {"spoilt": _why(error)})
        return
    _say(answers, {"scores": [encode_score(score) for score in scores]})


def _why(error: BaseException) -> str:
    return raised(error).reason or ""


def _say(answers: IO[str], message: Mapping[str, Json]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
