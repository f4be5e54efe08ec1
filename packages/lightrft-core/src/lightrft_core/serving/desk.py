"""Where requests wait for the engine: what waits together is one call, and calls of an engine that streams take turns,
so that a short answer need not wait for a long one. One thread does it all."""

import logging
import queue
import threading
import time

from lightrft_core.errors import LightRFTError, RunFailed
from lightrft_core.protocols import Engine
from lightrft_core.serving.calls import Call, Ending, Ticket

log = logging.getLogger(__name__)
GATHER = 0.005  # seconds in which others may join the first that waits
MAX_CALLS = 4  # that take turns; what comes then waits, and is one call
BETWEEN_CALLS = 0.25  # seconds in which more gather before a call joins others: few large calls are faster than many


class Desk:
    """Hands tickets to an engine."""

    def __init__(self, engine: Engine, max_waiting: int = 1024) -> None:
        self._engine = engine
        self._waiting: queue.Queue[Ticket] = queue.Queue(max_waiting)
        self._calls: list[Call] = []
        self._begun = 0.0  # when the last call began
        self._is_closed = threading.Event()

    def submit(self, ticket: Ticket) -> bool:
        """Queue it; False where too many wait."""
        try:
            self._waiting.put_nowait(ticket)
        except queue.Full:
            return False
        return True

    def run(self) -> None:
        """Serve until it is closed, in the thread that built the engine."""
        try:
            while not self._is_closed.is_set():
                if self._may_begin() and (tickets := self._gather()):
                    self._calls.append(Call(self._engine, tickets))
                    self._begun = time.monotonic()
                self._calls = [later for call in self._calls for later in self._advance(call)]
        finally:
            for call in self._calls:
                call.close()

    def close(self) -> None:
        """Tell all who wait that nothing more comes; `run` returns."""
        self._is_closed.set()
        end = Ending("the server ends")
        for call in self._calls:
            call.fail(end)
        while not self._waiting.empty():
            self._waiting.get_nowait().fail(end)
        self._waiting.put(Ticket(()))  # wakes `run`

    def _may_begin(self) -> bool:
        """Beside other calls not too many, and not at once."""
        is_time = time.monotonic() - self._begun >= BETWEEN_CALLS
        return not self._calls or (len(self._calls) < MAX_CALLS and is_time)

    def _gather(self) -> list[Ticket]:
        """What waits; where nothing else is to be done, it is waited for."""
        tickets = []
        if not self._calls:
            tickets.append(self._waiting.get())
            time.sleep(GATHER)
        while not self._waiting.empty():
            tickets.append(self._waiting.get_nowait())
        return [ticket for ticket in tickets if ticket.requests and not ticket.is_cancelled]

    def _advance(self, call: Call) -> list[Call]:
        """The call if it goes on; where a request of several was at fault, its halves: the others lose nothing."""
        try:
            return [call] if call.advance() else []
        except LightRFTError as error:
            if len(call.tickets) > 1 and not call.is_begun:
                half = len(call.tickets) // 2
                return [Call(self._engine, call.tickets[:half]), Call(self._engine, call.tickets[half:])]
            call.fail(error)
        except Exception as error:  # the boundary around a stranger's engine: the server outlives one call
            log.exception("the engine failed")
            call.fail(RunFailed(f"{type(error).__name__}: {error}", where="engine"))
        return []
