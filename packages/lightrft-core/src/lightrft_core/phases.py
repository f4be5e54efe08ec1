"""Seconds and peak memory by phase. Phases nest: time inside an inner phase is not the outer one's, and the memory of
a moment belongs to the innermost. Each change can be told on.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from lightrft_core.memory import Meter, unmetered

GIB = float(1 << 30)
_OUTSIDE = "between phases"


def unwatched(phase: str) -> None:
    """Nobody wants to know."""


class Phases:
    """A stopwatch for one step; `tell` hears the name of the phase that now runs, whenever it changes.

    `peaks` are in bytes, as the meter says; a phase that it knows nothing of is left out.
    """

    def __init__(self, tell: Callable[[str], None] = unwatched, meter: Meter = unmetered) -> None:
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, float] = {}
        self._inner: list[float] = []
        self._names = [_OUTSIDE]
        self._tell, self._meter = tell, meter

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the block's time, less that of phases inside it, to `name`."""
        self._note_peak()
        start = time.perf_counter()
        self._inner.append(0.0)
        self._names.append(name)
        self._tell(name)
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            own = elapsed - self._inner.pop()
            self.seconds[name] = self.seconds.get(name, 0.0) + own
            if self._inner:
                self._inner[-1] += elapsed
            self._note_peak()
            self._names.pop()
            self._tell(self._names[-1])

    def _note_peak(self) -> None:
        peak, name = self._meter(), self._names[-1]
        if peak is not None and name != _OUTSIDE:
            self.peaks[name] = max(peak, self.peaks.get(name, 0.0))


class PhaseTable:
    """Phases of a whole run: where its time went, and what memory each of them took at its peak."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, float] = {}

    def add(self, seconds: Mapping[str, float], peaks: Mapping[str, float]) -> None:
        """Some more of it."""
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value
        self.peaks = largest(self.peaks, peaks)

    def lines(self) -> list[str]:
        """The table, the longest phase first; memory in GiB, `-` where it is not known."""
        total = sum(self.seconds.values())
        rows = [("phase", "seconds", "share", "peak, GiB")]
        for name, seconds in sorted(self.seconds.items(), key=lambda item: -item[1]):
            peak = f"{self.peaks[name] / GIB:.2f}" if name in self.peaks else "-"
            rows.append((name, f"{seconds:,.1f}", f"{seconds / total:.1%}" if total else "-", peak))
        first, *widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
        cells = [[cell.rjust(width) for cell, width in zip(row[1:], widths, strict=True)] for row in rows]
        return ["  ".join([row[0].ljust(first), *rest]) for row, rest in zip(rows, cells, strict=True)]


def largest(*peaks: Mapping[str, float]) -> dict[str, float]:
    """The largest of each phase, such as of all ranks."""
    names = dict.fromkeys(name for part in peaks for name in part)
    return {name: max(part[name] for part in peaks if name in part) for name in names}
