"""What ended a rank, left where whoever started the ranks finds it: the error file of torch.distributed.elastic.

That other ranks lose their connection is a consequence of the first error and never hides it.
"""

import json
import os
import re
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from lightrft_core import launch
from lightrft_core.checkpoints import Checkpoints
from lightrft_core.errors import ExitCode, LightRFTError, RankLost
from lightrft_core.rank_output import rank_log
from lightrft_core.rundir import RunDir

REPORTED: Final = "LIGHTRFT_REPORTED"  # set for ranks whose first error their launcher tells, so that they need not
KILLED_HINT: Final = (
    "That is often the kernel's memory killer (`dmesg` on that machine says so): lower sampler.prompts_per_step, "
    "sampler.max_new_tokens or the strategy's micro-batches, or give it more memory."
)
_ERROR_FILE: Final = "TORCHELASTIC_ERROR_FILE"
_OURS: Final = "lightrft"
_LOST: Final = re.compile(r"gloo/transport/|Connection (closed|reset) by peer")
_LOST_TYPES: Final = frozenset(("DistBackendError", "DistNetworkError"))


@dataclass(frozen=True, slots=True)
class Failure:
    """How one rank ended. `seconds` is the time of it; `is_crash` where Python has a traceback for it."""

    rank: int
    host: str
    exit_code: int
    text: str
    seconds: float
    is_crash: bool = False
    is_consequence: bool = False

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """That of this rank, now."""
        ours = error if isinstance(error, LightRFTError) else None
        return cls(
            rank=launch.rank(),
            host=socket.gethostname(),
            exit_code=int(ours.exit_code if ours else ExitCode.FAILED),
            text=str(error) if ours else _in_one_line(error),
            seconds=time.time(),
            is_crash=ours is None,
            is_consequence=isinstance(error, RankLost),
        )

    def to_json(self) -> str:
        """In the form that torchrun reads too."""
        extra = {"py_callstack": self.text, "timestamp": str(int(self.seconds))}
        return json.dumps({"message": {"message": self.text, "extraInfo": extra}, _OURS: asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> "Failure | None":
        """What `to_json` wrote; None where somebody else did, or where it was cut short."""
        try:
            return cls(**json.loads(text)[_OURS])
        except (ValueError, KeyError, TypeError):
            return None


def first(failures: list[Failure]) -> Failure:
    """The one that the others came from."""
    return min(failures, key=lambda failure: (failure.is_consequence, failure.seconds))


def paragraph(failure: Failure, run_dir: RunDir) -> str:
    """What is said of it: which rank failed, of what, where its output is, how to go on."""
    if failure.exit_code == ExitCode.USER:
        return failure.text
    text = f"rank {failure.rank} on {failure.host}" + (" failed with " if failure.is_crash else ": ") + failure.text
    text += "" if text.endswith((".", "!", "?")) else "."
    log = rank_log(run_dir.logs, failure.rank)
    if log.is_file() and log.stat().st_size:
        text += f" Its output is in {log}."
    if "--resume" not in text and Checkpoints(run_dir.checkpoints, keep=1).steps(resumable=True):
        text += f" Go on with: lightrft train --resume {run_dir.path}"
    return text


def note(error: BaseException) -> None:
    """Leave this rank's end where its launcher finds it; the first call counts. Nothing to do without a launcher."""
    path = os.environ.get(_ERROR_FILE)
    if path and not Path(path).exists():
        Path(path).write_text(Failure.of(error).to_json(), encoding="utf-8")


def is_reported() -> bool:
    """Whether the launcher tells what was noted."""
    return REPORTED in os.environ and Path(os.environ.get(_ERROR_FILE, "")).is_file()


@contextmanager
def noted() -> Iterator[None]:
    """Note what ends the block, at once: closing may take long, and other ranks fail by then.

    Raises `RankLost` instead of what torch says where the connection to another rank is gone.
    """
    try:
        yield
    except Exception as error:
        told = RankLost(_in_one_line(error)) if _is_lost(error) else error
        note(told)
        if told is error:
            raise
        raise told from error


def _is_lost(error: Exception) -> bool:
    """By name and text, for core knows no torch; a reward's lost connection is an `OSError` and no such thing."""
    if not launch.is_launched():
        return False
    name = type(error).__name__
    return name in _LOST_TYPES or (type(error) is RuntimeError and _LOST.search(str(error)) is not None)


def _in_one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"
