"""One engine request per sibling: a completion depends on its own seed, never on who else is in the batch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from lightrft_core.abilities import Piece
from lightrft_core.data import Completion, FinishReason, GenerateRequest, Sampling
from lightrft_core.errors import RunFailed, UserError
from lightrft_core.protocols import Json

REASONS: dict[str | None, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}


@dataclass(eq=False, slots=True)
class Sibling:
    """A prompt with one seed, and what the engine has written for it so far; `place` is (request, sibling)."""

    place: tuple[int, int]
    prompt_id: str
    prompt_token_ids: tuple[int, ...]
    seed: int
    sampling: Sampling
    stop_token_ids: tuple[int, ...]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def name(self) -> str:
        """Its name among the siblings of one call."""
        return f"{self.place[0]}-{self.place[1]}"

    def add(self, token_ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """More tokens, each with the log-probability that it was drawn with."""
        if len(token_ids) != len(logprobs):
            raise RunFailed(
                f"the engine returned {len(token_ids)} tokens with {len(logprobs)} log-probabilities",
                where=f"prompt {self.prompt_id}",
                hint="Ask it for the log-probability of every sampled token; an attached server must be of a version "
                "that this engine supports.",
            )
        self.token_ids += token_ids
        self.logprobs += logprobs

    def finish(self, reason: str | None) -> None:
        """Why the engine ended it; a reason that is not known here is a fault of the engine."""
        if reason not in REASONS:
            raise RunFailed(f"the engine ended a completion with {reason!r}", where=f"prompt {self.prompt_id}")
        self.finish_reason = REASONS[reason]

    def piece(self, start: int) -> Piece:
        """What there is from token `start` on."""
        return Piece(self.place, tuple(self.token_ids[start:]), tuple(self.logprobs[start:]), self.finish_reason)

    def completion(self) -> Completion:
        """What there is; `abort` where it did not come to an end."""
        return Completion(tuple(self.token_ids), tuple(self.logprobs), self.finish_reason or "abort")


def siblings_of(requests: Sequence[GenerateRequest], stop_token_ids: Sequence[int]) -> list[Sibling]:
    """All siblings of the requests, in order; the model's stop tokens are added to the requests' own."""
    return [
        Sibling(
            (number, index),
            request.prompt_id,
            request.prompt_token_ids,
            seed,
            request.sampling,
            tuple(dict.fromkeys((*stop_token_ids, *request.sampling.stop_token_ids))),
        )
        for number, request in enumerate(requests)
        for index, seed in enumerate(request.seeds)
    ]


def completions_of(siblings: Sequence[Sibling], num_requests: int) -> list[list[Completion]]:
    """For each request the completions of its siblings, in order."""
    answers: list[list[Completion]] = [[] for _ in range(num_requests)]
    for sibling in siblings:
        answers[sibling.place[0]].append(sibling.completion())
    return answers


def check_lengths(requests: Sequence[GenerateRequest], max_positions: int, option: str) -> None:
    """`UserError` for a prompt that is empty, or too long for the engine's context, which `option` sets."""
    for request in requests:
        num, wanted = len(request.prompt_token_ids), request.sampling.max_new_tokens
        where = f"prompt {request.prompt_id}"
        if not num:
            raise UserError("the prompt has no tokens", where=where)
        if num + wanted > max_positions:
            raise UserError(
                f"{num} tokens and {wanted} new ones are more than the engine's context of {max_positions}",
                where=where,
                hint=f"Lower task.max_prompt_tokens or sampler.max_new_tokens, or raise {option} as far as the model "
                "goes.",
            )


def to_json(sibling: Sibling) -> Json:
    """A sibling that nothing is written for yet, for other ranks."""
    return asdict(sibling)


def from_json(item: Json) -> Sibling:
    """Back again."""
    sampling = item["sampling"]
    tuples = {name: tuple(sampling[name]) for name in ("stop", "stop_token_ids")}
    return Sibling(
        tuple(item["place"]),
        item["prompt_id"],
        tuple(item["prompt_token_ids"]),
        item["seed"],
        Sampling(**{**sampling, **tuples}),
        tuple(item["stop_token_ids"]),
    )
