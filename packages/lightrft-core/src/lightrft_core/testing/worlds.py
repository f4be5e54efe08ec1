"""Several ranks in one process: each is a thread, and every collective waits for all of them. Free of torch."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

from lightrft_core.protocols import Json, SoloWorld, World

Result = TypeVar("Result")
Share = TypeVar("Share")
TIMEOUT = 60.0

ToyWorld = SoloWorld


class _Meeting:
    """Where threads exchange values: all write, all wait, all read, all wait."""

    def __init__(self, size: int) -> None:
        self.barrier = Barrier(size, timeout=TIMEOUT)
        self.items: list[Json] = [None] * size

    def exchange(self, rank: int, item: Json) -> list[Json]:
        self.items[rank] = item
        self.barrier.wait()
        everything = list(self.items)
        self.barrier.wait()
        return everything


class ThreadWorld:
    """One rank of a `ToyWorlds`; `beside` are the same ranks for a second thread of each."""

    def __init__(self, rank: int, size: int, meeting: _Meeting, beside: _Meeting | None = None) -> None:
        self.rank, self.size, self._meeting, self._beside = rank, size, meeting, beside

    @property
    def beside(self) -> "ThreadWorld":
        """They meet apart from the first threads."""
        assert self._beside is not None, "this is the world of a second thread already"
        return ThreadWorld(self.rank, self.size, self._beside)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Elementwise sum over ranks, in rank order."""
        rows = self._meeting.exchange(self.rank, list(values))
        return [float(sum(column)) for column in zip(*rows, strict=True)]

    def gather(self, item: Json) -> list[Json]:
        """Every rank's value, in rank order."""
        return self._meeting.exchange(self.rank, item)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self._meeting.exchange(self.rank, None)


class ToyWorlds:
    """Runs a function once per rank, at the same time."""

    def __init__(self, size: int) -> None:
        self.size = size

    def split(self, function: Callable[[Share, World], Result], shares: Sequence[Share]) -> list[Result]:
        """`function(share, world)` on every rank with its own share; otherwise as `run`."""
        return self.run(lambda world: function(shares[world.rank], world))

    def run(self, function: Callable[[World], Result]) -> list[Result]:
        """Results in rank order. Raises what a rank raised; ranks that wait for it are released."""
        meeting, beside = _Meeting(self.size), _Meeting(self.size)

        def call(rank: int) -> Result:
            try:
                return function(ThreadWorld(rank, self.size, meeting, beside))
            except BaseException:
                meeting.barrier.abort()
                beside.barrier.abort()
                raise

        with ThreadPoolExecutor(self.size) as pool:
            futures = [pool.submit(call, rank) for rank in range(self.size)]
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise min(errors, key=_is_echo)
        return [future.result() for future in futures]


def _is_echo(error: BaseException) -> bool:
    """Whether a rank failed only because another did."""
    from threading import BrokenBarrierError

    return isinstance(error, BrokenBarrierError)
