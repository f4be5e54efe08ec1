"""Stopping early and well: a signal or the time limit only sets a reason, which the loop honours between phases.

A second signal ends the process at once. A file STOP in the run's folder asks for the same as a first one. The time
limit leaves room for the longest step and save seen so far, so that the last checkpoint is written before the limit,
not at it.
"""

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final

from lightrft_core.errors import UserError

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_SECONDS: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_RESERVE: Final = 1.2
Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None


def parse_duration(text: str, where: str = "run.max_time") -> float:
    """Seconds of `3h50m`, `1d`, `90s`, `1.5h`. `UserError` for anything else, and for no time at all."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or seconds <= 0:
        raise UserError(
            f"{text!r} is not a duration.",
            where=where,
            hint="Write days, hours, minutes and seconds as in `3h50m` or `90s`.",
        )
    return seconds


class Stopper:
    """A context manager in which SIGINT, SIGTERM, SIGUSR1 and the time limit become a request.

    `max_time` is in seconds of `clock`, from when the stopper is built. For `grace` seconds after the first signal
    further ones count as the same: a launcher such as torchrun repeats to its workers what the terminal sent them
    already. Python allows signal handlers in the main thread only: in another one `stop_file` is what remains, a file
    whose presence asks for the stop and whose text says why. The former handlers come back at the end.
    """

    def __init__(
        self,
        max_time: float | None = None,
        grace: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        stop_file: Path | None = None,
    ) -> None:
        self._clock, self._max_time, self._grace, self._start = clock, max_time, grace, clock()
        self._stop_file = stop_file
        self._signal: str | None = None
        self._signal_time = 0.0
        self._longest = {"step": 0.0, "save": 0.0}
        self._save_begin: float | None = None
        self._former: dict[signal.Signals, Handler] = {}

    def __enter__(self) -> "Stopper":
        for number in _SIGNALS if threading.current_thread() is threading.main_thread() else ():
            self._former[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()

    @property
    def requested(self) -> str | None:
        """Why to stop: a signal's name, `time limit`, or what the stop file says; None to go on."""
        if self._signal is None and self._max_time is not None and self.seconds_left <= 0:
            return "time limit"
        return self._signal or self._asked()

    def _asked(self) -> str | None:
        try:
            text = self._stop_file.read_text(encoding="utf-8") if self._stop_file is not None else None
        except OSError:
            return None
        return None if text is None else text.strip() or "asked by its STOP file"

    @property
    def seconds_left(self) -> float:
        """Seconds until a stop must begin: time for one more step and a save is taken off; infinite without limit.

        While a save goes on beside training, what is left of that one too.
        """
        if self._max_time is None:
            return float("inf")
        needed, now = sum(self._longest.values()), self._clock()
        if self._save_begin is not None:
            gone = now - self._save_begin
            needed += abs(self._longest["save"] - gone)  # it ends soon, or shows that a save takes longer
        return self._max_time - (now - self._start) - _RESERVE * needed

    def note_step(self, seconds: float) -> None:
        """A step took this long, evaluation included."""
        self._longest["step"] = max(self._longest["step"], seconds)

    def note_save(self, seconds: float) -> None:
        """A checkpoint took this long, from when it was asked for until it was published."""
        self._longest["save"] = max(self._longest["save"], seconds)
        self._save_begin = None

    def note_save_begun(self) -> None:
        """A checkpoint is written beside training, until `note_save`."""
        self._save_begin = self._clock()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._signal is not None and self._clock() - self._signal_time < self._grace:
            return
        if self._signal is not None:
            # os.write and os._exit: a handler may interrupt a print or a lock's owner, and must wait for neither
            os.write(2, f"\n{name}: ending at once; nothing more is saved\n".encode())
            os._exit(128 + number)
        self._signal, self._signal_time = name, self._clock()
        os.write(2, f"\n{name}: finishing this phase, then saving; a second signal ends at once\n".encode())
