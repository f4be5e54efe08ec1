"""How a server is spoken to: in token ids, where it takes and returns them, else in text.

In ids nothing is lost. In text the server tokenizes the prompt its own way, and its answer is encoded anew: the token
that ended it, a stop text, and how words were cut into tokens are gone, and log-probabilities are not known (NaN).
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from lightrft_core.errors import RunFailed, UserError
from lightrft_core.protocols import Json, ModelAdapter

from lightrft_engines.serving.siblings import Sibling

REASONS = {"content_filter": "abort"}  # beside those that siblings know


class Dialect(Protocol):
    """One way to ask for a completion."""

    def body(self, sibling: Sibling) -> Json:
        """Fields of `POST /v1/completions`, without the model's name."""

    def take(self, sibling: Sibling, choice: Json) -> None:
        """Give the sibling what came back."""


class InTokenIds:
    """For servers with `return_token_ids`: vLLM's and LightRFT's own."""

    def body(self, sibling: Sibling) -> Json:
        """Everything that the draw depends on is said, so that no default of the server's counts."""
        sampling = sibling.sampling
        found = {
            **_shared(sibling),
            "prompt": list(sibling.prompt_token_ids),
            "return_token_ids": True,
            "logprobs": 0,  # of the sampled token alone
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": 1.0,
            "stop_token_ids": list(sibling.stop_token_ids),
        }
        return {**found, "include_stop_str_in_output": True} if sampling.stop else found

    def take(self, sibling: Sibling, choice: Json) -> None:
        """Ids and log-probabilities as they were drawn."""
        sibling.add(choice["token_ids"], (choice["logprobs"] or {"token_logprobs": []})["token_logprobs"])
        sibling.finish(choice["finish_reason"])


class InText:
    """For all others; `pieces` and `encode` are the model adapter's."""

    def __init__(self, adapter: ModelAdapter) -> None:
        self._pieces: Callable[[Sequence[int]], list[str]] = adapter.pieces
        self._encode = adapter.encode

    def body(self, sibling: Sibling) -> Json:
        """The prompt's text, special tokens as they are written."""
        for name, off in (("top_k", 0), ("min_p", 0.0)):
            if getattr(sibling.sampling, name) != off:
                raise UserError(
                    "has no effect: the server takes no token ids, and so this is not asked of it.",
                    where=f"sampler.{name}",
                    hint="Leave it out; `lightrft serve` and vLLM's server know it.",
                )
        return {**_shared(sibling), "prompt": "".join(self._pieces(sibling.prompt_token_ids))}

    def take(self, sibling: Sibling, choice: Json) -> None:
        """Tokens of the text; nobody knows their log-probabilities."""
        token_ids = self._encode(choice["text"])
        sibling.add(token_ids, [math.nan] * len(token_ids))
        sibling.finish(REASONS.get(choice["finish_reason"], choice["finish_reason"]))


def first_choice(answer: Json) -> Json:
    """The answer's choice; `RunFailed` for what no such server says."""
    try:
        choice = answer["choices"][0]
        choice["text"], choice["finish_reason"]
    except (KeyError, IndexError, TypeError):
        raise RunFailed("the server's answer is not one of OpenAI's completions", where="engine.url") from None
    return choice


def _shared(sibling: Sibling) -> dict[str, Json]:
    sampling = sibling.sampling
    found: dict[str, Json] = {
        "n": 1,
        "seed": sibling.seed,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    return {**found, "stop": list(sampling.stop)} if sampling.stop else found
