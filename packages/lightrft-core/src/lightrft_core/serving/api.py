"""The routes: a checked body becomes requests to the engine, and their completions an answer or a stream of chunks."""

import logging
import secrets
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from lightrft_core.data import GenerateRequest, Prompt
from lightrft_core.errors import LightRFTError, UserError
from lightrft_core.model_choice import MAX_POSITIONS, Limits
from lightrft_core.protocols import Json, ModelAdapter
from lightrft_core.serving.asked import Asked, ChatAsked, CompletionAsked, Refusal, read
from lightrft_core.serving.calls import Ending, Ticket
from lightrft_core.serving.desk import Desk
from lightrft_core.serving.forms import ChatForm, Choice, CompletionForm, Form, Part
from lightrft_core.serving.text_pieces import TextPieces

log = logging.getLogger(__name__)
Stream = Generator[Json, None, None]  # closed early, it gives up what it asked the engine for


@dataclass(frozen=True, slots=True)
class Served:
    """A model as clients see it. `max_new_tokens` is for those that do not say."""

    name: str
    adapter: ModelAdapter
    max_new_tokens: int
    limits: Limits


class Api:
    """Answers bodies; safe to call from many threads."""

    def __init__(self, served: Served, desk: Desk) -> None:
        self._served, self._desk = served, desk
        self._tokenizer = threading.Lock()  # a tokenizer is not made for several threads
        self._created = int(time.time())

    def models(self) -> Json:
        """`GET /v1/models`."""
        card = {"id": self._served.name, "object": "model", "created": self._created, "owned_by": "lightrft"}
        return {"object": "list", "data": [card]}

    def complete(self, body: Json) -> Json | Stream:
        """`POST /v1/completions`: an object, or the chunks of a stream. `Refusal` where it cannot be answered."""
        asked = read(CompletionAsked, body)
        prompts = [self._encode(item) if isinstance(item, str) else tuple(item) for item in asked.prompts()]
        return self._answer(asked, prompts, CompletionForm(asked, self._served.name, self._pieces), asked.max_tokens)

    def chat(self, body: Json) -> Json | Stream:
        """`POST /v1/chat/completions`, likewise."""
        asked = read(ChatAsked, body)
        try:
            with self._tokenizer:
                prompt = self._served.adapter.render(Prompt("chat", tuple(item.plain() for item in asked.messages)))
        except UserError as error:
            raise Refusal(400, error.what, "messages") from error
        limit = asked.max_completion_tokens or asked.max_tokens
        return self._answer(asked, [prompt], ChatForm(asked, self._served.name, self._pieces), limit)

    def _answer(self, asked: Asked, prompts: Sequence[tuple[int, ...]], form: Form, limit: int | None) -> Json | Stream:
        if asked.model not in (None, self._served.name):
            raise Refusal(404, f"model: {asked.model!r} is not here; this server has {self._served.name!r}", "model")
        for token_ids in prompts:
            self._check_ids(token_ids)
        sampling, name = asked.sampling(self._limit(max(map(len, prompts)), limit)), secrets.token_hex(4)
        requests = [
            GenerateRequest(f"{name}-{number}", prompt, asked.seeds(secrets.randbits(62)), sampling)
            for number, prompt in enumerate(prompts)
        ]
        ticket = Ticket(requests, is_streamed=asked.stream)
        if not self._desk.submit(ticket):
            raise Refusal(503, "too many requests wait; try again later")
        choices = [self._choice(number * asked.n + sibling, prompt, asked)
                   for number, prompt in enumerate(prompts) for sibling in range(asked.n)]  # fmt: skip
        parts = _parts(ticket, choices, asked.n)
        if asked.stream:
            return _chunks(parts, choices, form)
        for _ in parts:
            pass
        return form.whole(choices)

    def _choice(self, index: int, prompt: tuple[int, ...], asked: Asked) -> Choice:
        texts = TextPieces(self._decode, asked.stops, keep_stop=asked.include_stop_str_in_output)
        return Choice(index, prompt, texts)

    def _check_ids(self, token_ids: Sequence[int]) -> None:
        """On a GPU an id that is not in the vocabulary would end the process."""
        size = self._served.limits.vocabulary
        if not token_ids:
            raise Refusal(400, "prompt: it has no tokens", "prompt")
        if size is not None and max(token_ids) >= size:
            raise Refusal(400, f"prompt: token ids of this model go from 0 to {size - 1}", "prompt")

    def _limit(self, num_read: int, asked: int | None) -> int:
        """New tokens: those asked for, where the model has places for them; else the usual number, or what fits."""
        left = (self._served.limits.positions or MAX_POSITIONS) - num_read
        if left < 1 or (asked is not None and asked > left):
            asks = f" and {asked} new ones" if asked is not None else ""
            raise Refusal(400, f"max_tokens: {num_read} tokens{asks} are more than {left + num_read}", "max_tokens")
        return asked or min(self._served.max_new_tokens, left)

    def _encode(self, text: str) -> tuple[int, ...]:
        with self._tokenizer:
            return self._served.adapter.encode(text)

    def _decode(self, token_ids: Sequence[int]) -> str:
        with self._tokenizer:
            return self._served.adapter.decode(token_ids)

    def _pieces(self, token_ids: Sequence[int]) -> list[str]:
        with self._tokenizer:
            return self._served.adapter.pieces(token_ids)


def _parts(ticket: Ticket, choices: Sequence[Choice], n: int) -> Iterator[tuple[Choice, Part]]:
    """What comes, choice by choice; the engine's errors as refusals."""
    try:
        for pieces in ticket.pieces():
            for piece in pieces:
                choice = choices[piece.place[0] * n + piece.place[1]]
                yield choice, choice.take(piece)
    except UserError as error:
        raise Refusal(400, error.what) from error
    except Ending as error:
        raise Refusal(503, error.what) from error
    except LightRFTError as error:
        log.error("%s", error)
        raise Refusal(500, "the engine failed; the server's log says why") from error


def _chunks(parts: Iterator[tuple[Choice, Part]], choices: Sequence[Choice], form: Form) -> Stream:
    """The opening waits for the first tokens: until then a request may still be refused."""
    is_open = False
    for choice, part in parts:
        if not is_open:
            yield from form.opening(choices)
            is_open = True
        yield form.chunk(choice, part)
    yield from form.closing(choices)
