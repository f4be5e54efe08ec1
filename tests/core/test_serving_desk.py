"""Tickets and an engine: what waits together is one call, and one bad request is nobody else's loss."""

import threading
import time
from contextlib import contextmanager

import pytest
from lightrft_core.abilities import Piece
from lightrft_core.data import GenerateRequest, Sampling
from lightrft_core.errors import RunFailed, UserError
from lightrft_core.serving.calls import Ticket, written
from lightrft_core.serving.desk import Desk
from lightrft_core.testing.toys import ToyEngine, ToyEngineConfig, toy_setup


class Watched(ToyEngine):
    """Counts its calls, waits to be released, and refuses the prompt 9."""

    def __init__(self, setup):
        super().__init__(ToyEngineConfig(), setup)
        self.calls, self.begun, self.released = [], threading.Event(), threading.Event()

    def generate(self, requests):
        self.calls.append(len(requests))
        self.begun.set()
        assert self.released.wait(20)
        if any(request.prompt_token_ids == (9,) for request in requests):
            raise UserError("no nines")
        if any(request.prompt_token_ids == (8,) for request in requests):
            raise ZeroDivisionError("eight")
        return super().generate(requests)


class Streaming(ToyEngine):
    """Tells its completions token for token."""

    def stream(self, requests):
        (items,) = zip(*self.generate(requests), strict=True)
        for place in range(max(len(item.token_ids) for item in items)):
            yield [
                Piece((number, 0), (item.token_ids[place],), (item.logprobs[place],),
                      item.finish_reason if place == len(item.token_ids) - 1 else None)
                for number, item in enumerate(items) if place < len(item.token_ids)
            ]  # fmt: skip


class Endless(Streaming):
    """One prompt is answered for ever."""

    endless, is_closed = 7, False

    def stream(self, requests):
        if requests[0].prompt_token_ids != (self.endless,):
            yield from super().stream(requests)
            return
        try:
            while True:
                yield [Piece((0, 0), (1,), (-1.0,))]
        finally:
            self.is_closed = True


def request(digit, *seeds):
    return GenerateRequest(f"p{digit}", (digit,), seeds or (1,), Sampling(3, stop_token_ids=(10,)))


def answer(ticket):
    found = {}
    for pieces in ticket.pieces():
        for piece in pieces:
            found.setdefault(piece.place, []).extend(piece.token_ids)
    return found


@contextmanager
def serving(engine, tickets):
    """The first ticket keeps the engine busy until all others wait; then it is released."""
    desk = Desk(engine)
    thread = threading.Thread(target=desk.run)
    thread.start()
    assert desk.submit(tickets[0])
    assert engine.begun.wait(20)
    assert all(desk.submit(ticket) for ticket in tickets[1:])
    engine.released.set()
    yield desk
    desk.close()
    thread.join()


def test_what_waits_together_is_one_call_and_everyone_gets_their_own(tmp_path):
    setup = toy_setup(tmp_path)
    engine, plain = Watched(setup), ToyEngine(ToyEngineConfig(), setup)
    tickets = [Ticket([request(0)]), *(Ticket([request(digit, 3, 4), request(digit + 1)]) for digit in range(1, 7))]
    with serving(engine, tickets):
        found = [answer(ticket) for ticket in tickets]
    assert engine.calls == [1, 12]
    for ticket, own in zip(tickets, found, strict=True):
        completions = plain.generate(ticket.requests)
        expected = {(i, j): list(c.token_ids) for i, items in enumerate(completions) for j, c in enumerate(items)}
        assert own == expected


def test_one_bad_request_fails_alone(tmp_path):
    tickets = [Ticket([request(digit)]) for digit in (0, 1, 9, 2)]
    with serving(Watched(toy_setup(tmp_path)), tickets):
        for ticket in (tickets[0], tickets[1], tickets[3]):
            assert answer(ticket)
        with pytest.raises(UserError, match="no nines"):
            answer(tickets[2])


def test_an_engine_that_breaks_is_told_and_the_next_call_is_served(tmp_path):
    tickets = [Ticket([request(8)])]
    with serving(Watched(toy_setup(tmp_path)), tickets) as desk:
        with pytest.raises(RunFailed, match="ZeroDivisionError: eight"):
            answer(tickets[0])
        later = Ticket([request(1)])
        assert desk.submit(later)
        assert answer(later)


def test_what_was_given_up_is_not_generated(tmp_path):
    engine = Watched(toy_setup(tmp_path))
    tickets = [Ticket([request(0)]), Ticket([request(1)], is_cancelled=True), Ticket([request(2)])]
    with serving(engine, tickets):
        answer(tickets[2])
    assert engine.calls == [1, 1]


def test_more_than_may_wait_are_turned_away_and_the_end_is_told(tmp_path):
    desk = Desk(ToyEngine(ToyEngineConfig(), toy_setup(tmp_path)), max_waiting=1)
    ticket = Ticket([request(1)])
    assert desk.submit(ticket)
    assert not desk.submit(Ticket([request(2)]))
    desk.close()
    with pytest.raises(RunFailed, match="the server ends"):
        answer(ticket)


@contextmanager
def answering_for_ever(engine):
    """A desk, and what it tells of an answer without end that has begun, until the block ends."""
    desk = Desk(engine)
    thread = threading.Thread(target=desk.run)
    thread.start()
    long = Ticket([request(engine.endless)], is_streamed=True)
    assert desk.submit(long)
    told = long.pieces()
    next(told)
    yield desk, told
    desk.close()
    thread.join()


def test_a_short_answer_does_not_wait_for_a_long_one_of_an_engine_that_streams(tmp_path):
    engine = Endless(ToyEngineConfig(), toy_setup(tmp_path))
    with answering_for_ever(engine) as (desk, told):
        short = Ticket([request(1)])
        assert desk.submit(short)
        assert answer(short)
        told.close()
        while not engine.is_closed:
            time.sleep(0.001)


def test_what_an_engine_still_streams_is_closed_in_its_own_thread_before_the_desk_leaves_it(tmp_path):
    engine = Endless(ToyEngineConfig(), toy_setup(tmp_path))
    with answering_for_ever(engine) as (_desk, told):
        assert not engine.is_closed
    assert engine.is_closed
    with pytest.raises(RunFailed, match="the server ends"):
        list(told)


def test_an_unstreamed_ticket_is_told_once_of_an_engine_that_streams(tmp_path):
    setup = toy_setup(tmp_path)
    desk = Desk(Streaming(ToyEngineConfig(), setup))
    thread = threading.Thread(target=desk.run)
    thread.start()
    tickets = [Ticket([request(1), request(2)], is_streamed=is_streamed) for is_streamed in (False, True)]
    assert all(desk.submit(ticket) for ticket in tickets)
    once, often = [list(ticket.pieces()) for ticket in tickets]
    assert len(once) == 1
    assert len(often) > 1
    assert {piece.place for piece in once[0]} == {(0, 0), (1, 0)}
    desk.close()
    thread.join()


def test_a_streaming_engine_is_told_token_for_token_and_another_in_one_piece(tmp_path):
    setup = toy_setup(tmp_path)
    whole = list(written(ToyEngine(ToyEngineConfig(), setup), [request(1), request(2)]))
    steps = list(written(Streaming(ToyEngineConfig(), setup), [request(1), request(2)]))
    assert len(whole) == 1
    assert max(len(piece.token_ids) for pieces in steps for piece in pieces) == 1
    for number in (0, 1):
        joined = [
            token for pieces in steps for piece in pieces if piece.place[0] == number for token in piece.token_ids
        ]
        assert joined == list(whole[0][number].token_ids)
