"""What a rank was doing when nothing moves any more: its phase and the stacks of all its threads.

A thread compares the time of the last change of phase with the limit. Where compiled code holds Python's lock, so that
no thread can run, `faulthandler` prints the stacks a little later by itself.
"""

import faulthandler
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType

from lightrft_core.rank_output import Say, drop_empty, rank_log

_PARTS, _MAX_PERIOD = 20, 10.0  # the thread looks so often within the limit, at least every so many seconds
_MAX_DELAY = 5.0
MARK = "stalled"


class Watchdog:
    """A context manager that tells when a rank makes no progress for `limit` seconds; without a limit it does nothing.

    The stacks go to stderr and to the rank's file in `folder`, one line to the terminal by `say`. One rank that stalls
    makes all of them print, by a mark in the folder that they share. `end`, where it is given, then ends the process
    with a sentence; it does not return. Before the first phase nothing is ended: loading a model may take long.
    """

    def __init__(
        self, limit: float | None, folder: Path, rank: int, say: Say, end: Callable[[str], None] | None = None
    ) -> None:
        self._limit, self._folder, self._rank, self._say, self._end = limit, folder, rank, say, end
        self._period = min((limit or 0.0) / _PARTS, _MAX_PERIOD)
        self._step, self._phase, self._has_begun = 0, "start", False
        self._since, self._told = time.monotonic(), 0
        self._mark_seen = self._mark_time()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lightrft-watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._limit is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = rank_log(self._folder, self._rank).open("a", encoding="utf-8")
            self._arm()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._limit is None:
            return
        faulthandler.cancel_dump_traceback_later()
        self._done.set()
        self._thread.join()
        self._file.close()
        if self._rank == 0:  # the files of the others belong to their output
            drop_empty(Path(self._file.name))

    def note(self, step: int, phase: str) -> None:
        """The rank goes on: this phase of this step begins."""
        self._step, self._phase, self._has_begun = step, phase, True
        self._since, self._told = time.monotonic(), 0
        if self._limit is not None:
            self._arm()

    @property
    def _is_ended(self) -> bool:
        return self._end is not None and self._has_begun

    def _arm(self) -> None:
        """Let faulthandler speak where our thread cannot, and late enough not to come before it on a busy machine."""
        limit = self._limit or 0.0
        late = self._period * 2 + min(limit, _MAX_DELAY)
        faulthandler.dump_traceback_later(limit + late, file=self._file, exit=self._is_ended)

    def _watch(self) -> None:
        assert self._limit is not None
        while not self._done.wait(self._period):
            stalled = time.monotonic() - self._since
            if stalled >= self._limit * (self._told + 1):
                self._told += 1
                self._report(f"rank {self._rank} has made no progress for {stalled:.0f} s", is_first=True)
                if self._end and self._is_ended and not self._done.wait(self._period * 4 + 1) and self._told:
                    self._end(self._sentence())  # by now all the others have printed theirs
            elif self._mark_time() != self._mark_seen:
                self._report(f"another rank has made no progress; rank {self._rank} goes on", is_first=False)

    def _report(self, what: str, *, is_first: bool) -> None:
        when = datetime.now().astimezone().isoformat(timespec="seconds")
        line = f"{what}: it is in phase {self._doing()}"
        self._file.write(f"{when} {line}\n")
        self._file.flush()
        faulthandler.dump_traceback(file=self._file, all_threads=True)
        if is_first or self._rank == 0:
            self._say(f"warning: {line}; the stacks of its threads are in {self._file.name}")
        if self._rank == 0:  # elsewhere stderr is that file
            faulthandler.dump_traceback(file=2, all_threads=True)
        if is_first:
            (self._folder / MARK).write_text(f"{when} {line}\n", encoding="utf-8")
            self._arm()
        self._mark_seen = self._mark_time()

    def _doing(self) -> str:
        began = datetime.fromtimestamp(time.time() - (time.monotonic() - self._since)).astimezone()
        step = f" of step {self._step}" if self._step else ""
        return f"{self._phase!r}{step} since {began:%Y-%m-%d %H:%M:%S}"

    def _sentence(self) -> str:
        return f"rank {self._rank} made no progress for {time.monotonic() - self._since:.0f} s in phase {self._doing()}"

    def _mark_time(self) -> int:
        try:
            return (self._folder / MARK).stat().st_mtime_ns
        except OSError:
            return 0
