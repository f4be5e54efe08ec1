"""torchrun for the ranks of one run: what ends it is the first error of the rank that failed, as one paragraph.

    python -m lightrft_core.torchrun RUN --nnodes=2 --nproc-per-node=8 ...

The options are torchrun's own. This process is torchrun's, whose entry point is named as text: core imports no torch.
"""

import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from lightrft_core.errors import EnvironmentUnfit, ExitCode, LightRFTError, UserError
from lightrft_core.failures import KILLED_HINT, REPORTED, Failure, first, paragraph
from lightrft_core.loading import load_object
from lightrft_core.rundir import RunDir

STOP_SECONDS: Final = 1800  # torchrun waits so long for ranks that finish their phase and save; its own 30 s lose it
_SIGNALS: Final = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
_KILL_HINTS: Final[Mapping[int, str]] = {
    signal.SIGKILL: KILLED_HINT,
    signal.SIGBUS: "That is often a full /dev/shm.",
    signal.SIGSEGV: "That is a fault in compiled code.",
}
_CONSEQUENCES: Final = (signal.SIGTERM, signal.SIGABRT)  # torchrun's own, and that of NCCL when another rank is gone


class Ended(Protocol):
    """What is read of torchrun's `ProcessFailure`. `exitcode` is a signal's number below 0, `timestamp` in seconds."""

    exitcode: int
    timestamp: int


class Main(Protocol):
    """torchrun's entry point."""

    def __call__(self, args: Sequence[str]) -> object:
        """Run the ranks that these words ask for."""


@dataclass(frozen=True)
class Ranks:
    """The ranks of a run on this machine. In `folder` torchrun keeps a file for what each of them noted."""

    run_dir: RunDir
    folder: Path

    def run(self, options: Sequence[str]) -> int:
        """Start them with torchrun's options, and wait; returns the exit code."""
        defaults = [f"--signals-to-handle={_SIGNALS}", f"--shutdown-timeout={STOP_SECONDS}"]
        command = ["-m", "lightrft_core.cli.main", "train", "--resume", str(self.run_dir.path)]
        os.environ[REPORTED] = "1"
        torchrun = _torchrun()
        try:
            torchrun([*defaults, *options, f"--log-dir={self.folder}", *command])
        except Exception as error:  # torch's classes have no name here; what is not known is told
            exits: Mapping[int, Ended] | None = getattr(error, "failures", None)
            received: signal.Signals | None = getattr(error, "sigval", None)
            if exits is None and received is None and self._has_begun():
                return self._end_of_others()
            if exits is None and received is None:
                raise EnvironmentUnfit(
                    f"torchrun could not bring the ranks together: {type(error).__name__}: {error}",
                    hint="Can every node reach the address and port of the first one? Are all of them started?",
                ) from error
            return self._end(exits or {}, received)
        return int(ExitCode.OK)

    def _end(self, exits: Mapping[int, Ended], received: signal.Signals | None) -> int:
        failures = self.noted()
        spoken = {failure.rank for failure in failures}
        failures += [self.silent(rank, ended) for rank, ended in exits.items() if rank not in spoken]
        if not failures:
            return self._end_of_status(received)
        cause = first(failures)
        if cause.exit_code != ExitCode.STOPPED:  # rank 0 has said that itself
            is_shared = sum(failure.text == cause.text for failure in failures) > 1
            text = cause.text if is_shared else paragraph(cause, self.run_dir)
            if not cause.is_consequence and (cause.rank != 0 or cause.rank not in spoken):
                self.run_dir.write_status("failed", text, cause.exit_code)
            print(f"error: {text}", file=sys.stderr, flush=True)
        return cause.exit_code

    def _has_begun(self) -> bool:
        """Whether ranks were started here: what torchrun lost then is the machine where another one ended."""
        return any(self.folder.glob("*/attempt_*"))

    def _end_of_others(self) -> int:
        if self.noted():
            return self._end({}, None)
        print("error: a rank on another machine ended the run; its STATUS says why.", file=sys.stderr, flush=True)
        return int(ExitCode.FAILED)

    def noted(self) -> list[Failure]:
        """What the ranks of the last attempt noted themselves."""
        attempts = sorted(self.folder.glob("*/attempt_*"), key=lambda path: int(path.name.rpartition("_")[2]))
        files = attempts[-1].glob("*/error.json") if attempts else ()
        found = [Failure.from_json(path.read_text(encoding="utf-8")) for path in sorted(files)]
        return [failure for failure in found if failure is not None]

    def silent(self, rank: int, ended: Ended) -> Failure:
        """A rank that ended without a note: it was killed, or something else ended it."""
        host, code, number = socket.gethostname(), ended.exitcode, -ended.exitcode
        if code < 0:
            text = f"killed by signal {number} ({_name(number)}). {_KILL_HINTS.get(number, '')}"
        else:
            text = f"it ended without a word, with exit code {code}."
        # torchrun gives whole seconds: what another rank noted in the same one came before
        return Failure(
            rank, host, _exit_code(code), text.strip(), ended.timestamp + 1.0, is_consequence=number in _CONSEQUENCES
        )

    def _end_of_status(self, received: signal.Signals | None) -> int:
        """A signal came and no rank noted anything: the run was done by then, or its ranks were ended at once."""
        is_done = self.run_dir.read_status().state == "done"
        return int(ExitCode.OK) if is_done or received is None else 128 + received


def _torchrun() -> Main:
    try:
        found: Main = load_object("torch.distributed.run:main")
    except ImportError as error:
        raise EnvironmentUnfit(
            f"torchrun is not here: {error}.", hint="Install a training strategy: `pip install lightrft-engines`."
        ) from error
    if "LOGLEVEL" not in os.environ:
        logging.disable(logging.ERROR)  # torchrun's account of each process that it ends; ours follows
    return found


def _exit_code(code: int) -> int:
    """One of ours: a program that ended the rank by a code of its own failed."""
    return code if code in tuple(ExitCode) else int(ExitCode.FAILED)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def main(words: Sequence[str]) -> int:
    """`RUN` and torchrun's options; returns the exit code."""
    try:
        if not words:
            raise UserError("the run's folder is missing.", hint="python -m lightrft_core.torchrun RUN --nnodes=2 ...")
        run_dir = RunDir.open(Path(words[0]))
        with tempfile.TemporaryDirectory(prefix="lightrft-ranks-") as folder:
            return Ranks(run_dir, Path(folder)).run(words[1:])
    except LightRFTError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return int(error.exit_code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
