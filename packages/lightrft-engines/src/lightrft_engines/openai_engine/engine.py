"""`protocols.Engine` on a running server: one request a sibling, many at a time, over OpenAI's completion route."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import NoReturn

from lightrft_core.data import Completion, GenerateRequest, Sampling
from lightrft_core.errors import UserError
from lightrft_core.protocols import ModelAdapter, Setup, Weights
from lightrft_core.suggest import did_you_mean

from lightrft_engines.openai_engine.caller import Caller
from lightrft_engines.openai_engine.config import OpenaiConfig
from lightrft_engines.openai_engine.dialects import Dialect, InText, InTokenIds, first_choice
from lightrft_engines.serving.siblings import Sibling, completions_of, siblings_of

log = logging.getLogger(__name__)
VERSION = 0


class OpenaiEngine:
    """Generates with the weights that the server has; those of a trainer it does not take."""

    def __init__(self, config: OpenaiConfig, setup: Setup) -> None:
        adapter = setup.require_model()
        self._config, self._stop_token_ids = config, adapter.stop_token_ids
        self._caller = Caller(config)
        try:
            self._model = self._chosen(self._caller.models())
            self._dialect = self._understood(adapter)
        except BaseException:
            self.close()
            raise

    @property
    def version(self) -> int:
        """Always 0: the weights are not ours, and do not change."""
        return VERSION

    @property
    def speaks_token_ids(self) -> bool:
        """Whether ids and log-probabilities are the server's own, or made here from its text."""
        return isinstance(self._dialect, InTokenIds)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        """See `protocols.Engine`; what is not back within `engine.time_limit` is empty and marked `abort`."""
        for request in requests:
            if request.media:
                hint = "Choose an engine that provides them: `lightrft plugins list` shows which do."
                what = f"prompt {request.prompt_id} has {request.media[0].kind}s, and the engine openai sends text."
                raise UserError(what, where="engine", hint=hint)
        siblings = siblings_of(requests, self._stop_token_ids)
        limit = self._config.time_limit
        deadline = math.inf if limit is None else time.monotonic() + limit

        def write(sibling: Sibling) -> None:
            answer = self._caller.complete({"model": self._model, **self._dialect.body(sibling)}, deadline)
            if answer is not None:
                self._dialect.take(sibling, first_choice(answer))

        error = self._caller.client.each(write, siblings, None, _nothing)
        if error is not None:
            raise error
        return completions_of(siblings, len(requests))

    def update_weights(self, weights: Weights, version: int) -> None:
        """`UserError`: a server's weights stay what they are."""
        self._refuse_weights()

    def fingerprint(self, names: Sequence[str]) -> Mapping[str, float]:
        """`UserError`: nobody here sees them."""
        self._refuse_weights()

    def reset_cache(self) -> None:
        """Its weights never change, so no cache of theirs is stale."""

    def sleep(self) -> None:
        """Its memory is the server's."""

    def wake(self) -> None:
        """Likewise."""

    def close(self) -> None:
        """Let the connections go; the server lives on."""
        self._caller.client.close()

    def _chosen(self, names: Sequence[str]) -> str:
        wanted = self._config.model
        if wanted is None and len(names) == 1:
            return names[0]
        known = f"It has {', '.join(names) or 'none'}."
        if wanted is None:
            raise UserError(
                f"{self._config.url} has {len(names)} models.", where="engine.model", hint=f"Name one. {known}"
            )
        if wanted not in names:
            hint = f"{did_you_mean(wanted, names)} {known}".strip()
            raise UserError(f"{self._config.url} has no model {wanted!r}.", where="engine.model", hint=hint)
        return wanted

    def _understood(self, adapter: ModelAdapter) -> Dialect:
        """Ids, if one token asked for in ids comes back as one; else text, with a warning of what that loses."""
        sampling = Sampling(max_new_tokens=1, temperature=0.0)
        prompt = adapter.encode("1") or adapter.stop_token_ids[:1]
        trial = Sibling((0, 0), "a trial", tuple(prompt), 0, sampling, tuple(self._stop_token_ids))
        in_ids = InTokenIds()
        answer = self._caller.attempt({"model": self._model, **in_ids.body(trial)})
        choice = {} if answer is None else first_choice(answer)
        if choice.get("token_ids") and choice.get("logprobs"):
            return in_ids
        log.warning(
            "%s takes no token ids: prompts go as text, answers are encoded anew, log-probabilities are not known",
            self._config.url,
        )
        return InText(adapter)

    def _refuse_weights(self) -> NoReturn:
        hint = "Use `embedded` or `vllm` where weights change."
        raise UserError("the engine openai takes no weights.", where="engine.use", hint=hint)


def _nothing() -> None:
    """The limit is kept by every request itself."""
