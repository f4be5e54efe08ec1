"""A completion while it is written, and what ends it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lightrft_core.data import Completion, FinishReason
from torch import Tensor

from lightrft_engines.decode.cache import PromptSlot

Decode = Callable[[Sequence[int]], str]
TAIL_SLACK = 8


@dataclass(eq=False, slots=True)
class SharedPrompt:
    """A distinct prompt: its siblings are drawn from the same first logits and attend to the same keys."""

    token_ids: tuple[int, ...]
    num_waiting: int = 0
    num_open: int = 0
    slot: PromptSlot | None = None
    logits_V: Tensor | None = None


class StopTexts:
    """Texts that end a completion, also where they span tokens.

    A text is looked for in the last tokens only, and only after a token that can complete it; what a token's own text
    can complete is remembered. Special tokens have no text (see `ModelAdapter.decode`).
    """

    def __init__(self, texts: Sequence[str], decode: Decode) -> None:
        self.texts, self.decode = tuple(texts), decode
        self.tail = max(len(text.encode()) for text in texts) + TAIL_SLACK
        self._completing: dict[int, bool] = {}

    def end(self, token_ids: Sequence[int]) -> bool:
        """Whether the last token completed one of the texts."""
        if not self._can_complete(token_ids[-1]) or not self._holds_text(token_ids[-self.tail :]):
            return False
        return self._holds_text(token_ids)  # the tail's first token may have lost its leading blank

    def _holds_text(self, token_ids: Sequence[int]) -> bool:
        written = self.decode(token_ids)
        return any(text in written for text in self.texts)

    def _can_complete(self, token_id: int) -> bool:
        if token_id not in self._completing:
            written = self.decode([token_id])
            self._completing[token_id] = "\ufffd" in written or any(
                text[-1].isspace() or text[-1] in written for text in self.texts
            )
        return self._completing[token_id]


@dataclass(eq=False, slots=True)
class Row:
    """One sibling. `limit` counts tokens; `place` says which request's and which sibling's completion this is."""

    place: tuple[int, int]
    prompt_id: str
    prompt: SharedPrompt
    seed: int
    limit: int
    stop_token_ids: frozenset[int]
    stop_texts: StopTexts | None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, token_id: int, logprob: float) -> bool:
        """Take one more token; True when it ends the completion."""
        self.token_ids.append(token_id)
        self.logprobs.append(logprob)
        if token_id in self.stop_token_ids or (self.stop_texts is not None and self.stop_texts.end(self.token_ids)):
            self.finish_reason = "stop"
        elif len(self.token_ids) == self.limit:
            self.finish_reason = "length"
        return self.finish_reason is not None

    def completion(self) -> Completion:
        """The finished completion."""
        return Completion(tuple(self.token_ids), tuple(self.logprobs), self.finish_reason or "abort")
