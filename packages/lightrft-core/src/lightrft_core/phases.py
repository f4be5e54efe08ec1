"""Seconds by phase. Phases nest: time inside an inner phase is not the outer one's. Each change can be told on."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def unwatched(phase: str) -> None:
    """Nobody wants to know."""


class Phases:
    """A stopwatch for one step; `tell` hears the name of the phase that now runs, whenever it changes."""

    def __init__(self, tell: Callable[[str], None] = unwatched) -> None:
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []
        self._names = ["between phases"]
        self._tell = tell

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the block's time, less that of phases inside it, to `name`."""
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
            self._names.pop()
            self._tell(self._names[-1])
