"""What a route answers: completions and chats have the same facts under different names."""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lightrft_core.abilities import Piece
from lightrft_core.data import FinishReason
from lightrft_core.protocols import Json
from lightrft_core.serving.asked import ChatAsked, CompletionAsked
from lightrft_core.serving.text_pieces import TextPieces

Pieces = Callable[[Sequence[int]], list[str]]


@dataclass(slots=True)
class Part:
    """Some of a choice, or all of it."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, other: "Part") -> None:
        """What follows."""
        self.text += other.text
        self.token_ids += other.token_ids
        self.logprobs += other.logprobs
        self.finish_reason = other.finish_reason


@dataclass(slots=True)
class Choice:
    """A completion while it comes; `index` is its number in the answer."""

    index: int
    prompt_token_ids: tuple[int, ...]
    texts: TextPieces
    whole: Part = field(default_factory=Part)

    def take(self, piece: Piece) -> Part:
        """The next tokens, with what they add to the text."""
        text = self.texts.push(piece.token_ids, is_last=piece.finish_reason is not None)
        part = Part(text, list(piece.token_ids), list(piece.logprobs), piece.finish_reason)
        self.whole.add(part)
        return part


class Form(Protocol):
    """Facts as JSON."""

    def whole(self, choices: Sequence[Choice]) -> Json:
        """An answer in one."""

    def opening(self, choices: Sequence[Choice]) -> list[Json]:
        """What a stream begins with."""

    def chunk(self, choice: Choice, part: Part) -> Json:
        """A piece of a stream."""

    def closing(self, choices: Sequence[Choice]) -> list[Json]:
        """What a stream ends with."""


class CompletionForm:
    """`Form` of `/v1/completions`."""

    def __init__(self, asked: CompletionAsked, model: str, pieces: Pieces) -> None:
        self._asked, self._pieces = asked, pieces
        self._head = _head("cmpl", "text_completion", model)

    def whole(self, choices: Sequence[Choice]) -> Json:
        """Choices in order, with usage."""
        told = [self._choice(choice, choice.whole, with_prompt=True) for choice in choices]
        return {**self._head, "choices": told, "usage": usage(choices)}

    def opening(self, choices: Sequence[Choice]) -> list[Json]:
        """Nothing."""
        return []

    def chunk(self, choice: Choice, part: Part) -> Json:
        """The prompt's ids come with a choice's first tokens."""
        is_first = len(choice.whole.token_ids) == len(part.token_ids)
        return {**self._head, "choices": [self._choice(choice, part, with_prompt=is_first)]}

    def closing(self, choices: Sequence[Choice]) -> list[Json]:
        """The usage, if it was asked for."""
        if not self._asked.stream_options.include_usage:
            return []
        return [{**self._head, "choices": [], "usage": usage(choices)}]

    def _choice(self, choice: Choice, part: Part, *, with_prompt: bool) -> Json:
        logprobs = None
        if self._asked.logprobs is not None:
            logprobs = {"tokens": self._pieces(part.token_ids), "token_logprobs": part.logprobs, "top_logprobs": None}
        ids: dict[str, Json] = {"token_ids": part.token_ids} if self._asked.return_token_ids else {}
        if ids and with_prompt:
            ids["prompt_token_ids"] = list(choice.prompt_token_ids)
        said = {"index": choice.index, "text": part.text, "logprobs": logprobs, "finish_reason": part.finish_reason}
        return {**said, **ids}


class ChatForm:
    """`Form` of `/v1/chat/completions`."""

    def __init__(self, asked: ChatAsked, model: str, pieces: Pieces) -> None:
        self._asked, self._pieces = asked, pieces
        self._head = _head("chatcmpl", "chat.completion", model)

    def whole(self, choices: Sequence[Choice]) -> Json:
        """Choices in order, with usage; the prompt's ids stand beside them."""
        told = [
            self._choice(choice, choice.whole, message={"role": "assistant", "content": choice.whole.text})
            for choice in choices
        ]
        return {**self._head, "choices": told, "usage": usage(choices), **self._prompt(choices)}

    def opening(self, choices: Sequence[Choice]) -> list[Json]:
        """Who speaks."""
        delta = {"role": "assistant", "content": ""}
        return [
            self._chunk([{"index": choice.index, "delta": delta, "finish_reason": None}], **self._prompt(choices))
            for choice in choices
        ]

    def chunk(self, choice: Choice, part: Part) -> Json:
        """More of what is said."""
        return self._chunk([self._choice(choice, part, delta={"content": part.text})])

    def closing(self, choices: Sequence[Choice]) -> list[Json]:
        """The usage, if it was asked for."""
        return [self._chunk([], usage=usage(choices))] if self._asked.stream_options.include_usage else []

    def _choice(self, choice: Choice, part: Part, **said: Json) -> Json:
        logprobs = None
        if self._asked.logprobs:
            pairs = zip(self._pieces(part.token_ids), part.logprobs, strict=True)
            logprobs = {"content": [{"token": token, "logprob": value, "top_logprobs": []} for token, value in pairs]}
        ids = {"token_ids": part.token_ids} if self._asked.return_token_ids else {}
        return {"index": choice.index, **said, "logprobs": logprobs, "finish_reason": part.finish_reason, **ids}

    def _chunk(self, choices: list[Json], **more: Json) -> Json:
        return {**self._head, "object": "chat.completion.chunk", "choices": choices, **more}

    def _prompt(self, choices: Sequence[Choice]) -> dict[str, Json]:
        return {"prompt_token_ids": list(choices[0].prompt_token_ids)} if self._asked.return_token_ids else {}


def usage(choices: Sequence[Choice]) -> Json:
    """Counts of tokens; a prompt counts once, however many choices it has."""
    prompts = {id(choice.prompt_token_ids): len(choice.prompt_token_ids) for choice in choices}
    read, wrote = sum(prompts.values()), sum(len(choice.whole.token_ids) for choice in choices)
    return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}


def _head(prefix: str, kind: str, model: str) -> dict[str, Json]:
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}
