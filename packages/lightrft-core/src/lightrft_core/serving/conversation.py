"""A chat in lines: what is typed goes to whoever answers, and what comes back is written while it comes."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Protocol

from lightrft_core.data import GenerateRequest, Prompt, Sampling
from lightrft_core.errors import LightRFTError, UserError
from lightrft_core.model_choice import MAX_POSITIONS
from lightrft_core.printable import printable
from lightrft_core.serving.calls import written
from lightrft_core.serving.source import Source
from lightrft_core.serving.text_pieces import TextPieces

COMMANDS = "/reset forgets what was said, /system TEXT sets the system message (none without TEXT), /quit ends."
Message = dict[str, str]
Write = Callable[[str], None]


class Answerer(Protocol):
    """Who answers."""

    def answer(self, messages: list[Message]) -> Iterator[str]:
        """The next message, piece by piece; `LightRFTError` where there is none."""


@dataclass(slots=True)
class EngineAnswerer:
    """An engine in this process. Every answer has a seed of its own, counted from `seed`."""

    source: Source
    sampling: Sampling
    seed: int
    _num: int = 0

    def answer(self, messages: list[Message]) -> Iterator[str]:
        """By the model's chat template."""
        adapter = self.source.adapter
        name = f"message {self._num + 1}"
        prompt = adapter.render(Prompt(name, tuple(messages)))
        left = (self.source.limits.positions or MAX_POSITIONS) - len(prompt)
        if left < 1:
            raise UserError(f"what was said is longer than the model's {left + len(prompt)} positions.", where=name)
        sampling = replace(self.sampling, max_new_tokens=min(self.sampling.max_new_tokens, left))
        request = GenerateRequest(name, prompt, (self.seed + self._num,), sampling)
        self._num += 1
        texts = TextPieces(adapter.decode)
        with closing(written(self.source.engine, [request])) as steps:
            for pieces in steps:
                for piece in pieces:
                    yield texts.push(piece.token_ids, is_last=piece.finish_reason is not None)


@dataclass(slots=True)
class Conversation:
    """What was said, and with whom."""

    answerer: Answerer
    write: Write
    system: str | None = None
    messages: list[Message] = field(default_factory=list)

    def run(self, lines: Iterable[str]) -> None:
        """A line a turn, until there are no more or one says `/quit`."""
        for line in lines:
            text = line.strip()
            if text.startswith("/"):
                if not self._command(text):
                    return
            elif text:
                self._turn(text)

    def _command(self, text: str) -> bool:
        """False where it ends the conversation."""
        name, _, rest = text.partition(" ")
        if name == "/quit":
            return False
        if name == "/reset":
            self.messages.clear()
        elif name == "/system":
            self.system = rest.strip() or None
        else:
            self._note(f"there is no {name}. {COMMANDS}")
        return True

    def _turn(self, text: str) -> None:
        head = [{"role": "system", "content": self.system}] if self.system else []
        asked = [*self.messages, {"role": "user", "content": text}]
        answer = ""
        try:
            for piece in self.answerer.answer([*head, *asked]):
                answer += piece
                self.write(printable(piece))
        except KeyboardInterrupt:
            self.write("\n")
            self._note("stopped; what was said so far stays.")
        except LightRFTError as error:
            self._note(f"{error.what} /reset forgets what was said." if isinstance(error, UserError) else str(error))
            return
        else:
            self.write("\n")
        self.messages = [*asked, {"role": "assistant", "content": answer}]

    def _note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
