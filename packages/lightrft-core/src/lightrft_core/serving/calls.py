"""One call of the engine for several clients: their requests go in together, and each is told its own completions."""

import queue
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

from lightrft_core.abilities import Piece, StreamingEngine
from lightrft_core.data import GenerateRequest
from lightrft_core.errors import LightRFTError, RunFailed
from lightrft_core.protocols import Engine

Event = Sequence[Piece] | LightRFTError


class Ending(RunFailed):
    """The server was told to end; nothing went wrong."""


@dataclass(eq=False, slots=True)
class Ticket:
    """One client's requests. With `is_streamed` it is told token for token, where the engine can; else once."""

    requests: Sequence[GenerateRequest]
    is_streamed: bool = False
    is_cancelled: bool = False
    is_begun: bool = False
    _held: list[Piece] = field(default_factory=list)
    _num_ended: int = 0
    _events: "queue.SimpleQueue[Event]" = field(default_factory=queue.SimpleQueue)

    def tell(self, pieces: Sequence[Piece]) -> None:
        """More of its completions; by the thread of the engine alone."""
        self.is_begun = True
        self._held += pieces
        self._num_ended += _num_ends(pieces)
        if self.is_streamed or self._num_ended == self._num_choices:
            self._events.put(self._held)
            self._held = []

    def fail(self, error: LightRFTError) -> None:
        """Why there is nothing more."""
        self._events.put(error)

    def pieces(self) -> Iterator[Sequence[Piece]]:
        """Until all completions are done; raises the engine's error. Closed early, the ticket is cancelled."""
        num_open = self._num_choices
        try:
            while num_open:
                event = self._events.get()
                if isinstance(event, LightRFTError):
                    raise event
                num_open -= _num_ends(event)
                yield event
        finally:
            self.is_cancelled = True

    @property
    def _num_choices(self) -> int:
        return sum(len(request.seeds) for request in self.requests)


class Call:
    """Tickets that are served together."""

    def __init__(self, engine: Engine, tickets: Sequence[Ticket]) -> None:
        self.tickets = tickets
        self._places = [(ticket, number) for ticket in tickets for number in range(len(ticket.requests))]
        self._steps = written(engine, [ticket.requests[number] for ticket, number in self._places])

    @property
    def is_begun(self) -> bool:
        """Whether somebody was told something."""
        return any(ticket.is_begun for ticket in self.tickets)

    def advance(self) -> bool:
        """One step; False after the last, or where nobody waits any more. Raises what the engine raises."""
        if all(ticket.is_cancelled for ticket in self.tickets):
            self.close()
            return False
        pieces = next(self._steps, None)
        for ticket, own in _by_ticket(pieces or (), self._places):
            ticket.tell(own)
        return pieces is not None

    def close(self) -> None:
        """Let the engine stop; whoever still waits is told by `fail`."""
        self._steps.close()

    def fail(self, error: LightRFTError) -> None:
        """Tell all."""
        for ticket in self.tickets:
            ticket.fail(error)


def written(engine: Engine, requests: Sequence[GenerateRequest]) -> Generator[Sequence[Piece], None, None]:
    """The completions while they are written, where the engine can tell; else each in one piece at the end."""
    if isinstance(engine, StreamingEngine):
        yield from engine.stream(requests)
    else:
        yield [
            Piece((number, sibling), item.token_ids, item.logprobs, item.finish_reason)
            for number, completions in enumerate(engine.generate(requests))
            for sibling, item in enumerate(completions)
        ]


def _num_ends(pieces: Sequence[Piece]) -> int:
    return sum(piece.finish_reason is not None for piece in pieces)


def _by_ticket(pieces: Sequence[Piece], places: Sequence[tuple[Ticket, int]]) -> list[tuple[Ticket, list[Piece]]]:
    """Each ticket's own pieces, under its own numbers."""
    found: dict[int, tuple[Ticket, list[Piece]]] = {}
    for piece in pieces:
        ticket, number = places[piece.place[0]]
        own = Piece((number, piece.place[1]), piece.token_ids, piece.logprobs, piece.finish_reason)
        found.setdefault(id(ticket), (ticket, []))[1].append(own)
    return list(found.values())
