"""Seconds by phase. Phases nest: time inside an inner phase is not the outer one's."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Phases:
    """A stopwatch for one step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the block's time, less that of phases inside it, to `name`."""
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            own = elapsed - self._inner.pop()
            self.seconds[name] = self.seconds.get(name, 0.0) + own
            if self._inner:
                self._inner[-1] += elapsed
