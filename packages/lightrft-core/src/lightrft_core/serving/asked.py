"""Bodies of requests, checked: what OpenAI's routes take and this server does. All else is refused by its name."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from lightrft_core.data import Sampling, seed_for
from lightrft_core.protocols import Json

TokenIds = list[Annotated[int, Field(ge=0)]]
Text = Annotated[str, Field(min_length=1)]
MAX_CHOICES, MAX_PROMPTS, MAX_STOPS = 128, 1024, 16
SEEDS = 1 << 63
NEUTRAL: Mapping[str, tuple[Json, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "tools": ([],),
    "response_format": ({"type": "text"},),
    "add_special_tokens": (False,),
}
"""Options that this server does not have, with the values by which a client says that it does not want them."""
SHAPES = {
    "prompt": "must be text, token ids, or a list of these",
    "stop": f"must be a text, or up to {MAX_STOPS} of them, none empty",
    "messages": "must be a list of {role, content}; the content is text, or parts of the type `text`",
}


class Refusal(Exception):
    """A request that is answered by an error: HTTP's status, and what is wrong with which field."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param


class Part(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    role: Text
    content: str | list[Part]

    def plain(self) -> dict[str, str]:
        """The same with its parts joined."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": content}


class StreamOptions(BaseModel):
    """What a stream tells beside its text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    include_usage: bool = False


class Asked(BaseModel):
    """What both routes take. `user` and `request_id` are for logs of a client's own and change nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=-1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=SEEDS)
    stop: str | list[Text] = Field(default_factory=list, max_length=MAX_STOPS)
    stop_token_ids: TokenIds = Field(default_factory=list)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    return_token_ids: bool = False
    include_stop_str_in_output: bool = False
    user: str | None = None
    request_id: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end a completion."""
        return ((self.stop,) if self.stop else ()) if isinstance(self.stop, str) else tuple(self.stop)

    def sampling(self, max_new_tokens: int) -> Sampling:
        """As an engine takes it."""
        return Sampling(
            max_new_tokens=max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0),
            min_p=self.min_p,
            stop=self.stops,
            stop_token_ids=tuple(self.stop_token_ids),
        )

    def seeds(self, drawn: int) -> tuple[int, ...]:
        """One a choice: the first is `seed` itself, and `drawn` where none was given."""
        first = drawn if self.seed is None else self.seed
        return (first, *(seed_for(first, index) for index in range(1, self.n)))


class CompletionAsked(Asked):
    """`POST /v1/completions`."""

    prompt: str | TokenIds | Annotated[list[str] | list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    logprobs: int | None = Field(default=None, ge=0, le=1)

    def prompts(self) -> list[str | list[int]]:
        """One or several; a list of numbers is one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        items: list[Any] = self.prompt  # Any: the union's lists, told apart by their first item
        return [items] if not items or isinstance(items[0], int) else items


class ChatAsked(Asked):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=0)


AskedT = TypeVar("AskedT", bound=Asked)


def read(kind: type[AskedT], body: Json) -> AskedT:
    """The body as a route takes it; `Refusal` names the first field that is wrong. A null is a default."""
    if not isinstance(body, dict):
        raise Refusal(400, "the body must be a JSON object")
    given = {name: value for name, value in body.items() if value is not None}
    for name in NEUTRAL:
        if name in given and given.pop(name) not in NEUTRAL[name]:
            raise Refusal(400, f"{name}: this server does not have it; leave it out", name)
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_context=False)[0]
        raise _refusal(detail) from None


def _refusal(detail: ErrorDetails) -> Refusal:
    field = str(detail["loc"][0]) if detail["loc"] else "body"
    if detail["type"] == "extra_forbidden" and len(detail["loc"]) == 1:
        return Refusal(400, f"{field}: this server has no such option", field)
    if detail["type"] == "missing" and len(detail["loc"]) == 1:
        return Refusal(400, f"{field} is missing", field)
    said = detail["msg"][:1].lower() + detail["msg"][1:]
    return Refusal(400, f"{field}: {SHAPES.get(field, said)}", field)
