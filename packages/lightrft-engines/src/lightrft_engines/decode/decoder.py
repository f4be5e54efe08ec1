"""Completions from a transformers model: groups requests, picks the way to run the model, and sorts the results."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from lightrft_core.data import Completion, GenerateRequest, Sampling
from lightrft_core.errors import UserError
from torch import nn

from lightrft_engines.decode.graphs import GraphStep
from lightrft_engines.decode.readers import PaddedReader, Reader, SharedReader
from lightrft_engines.decode.rows import Decode, Row, SharedPrompt, StopTexts
from lightrft_engines.decode.session import Session
from lightrft_engines.decode.sharing import longest_shared
from lightrft_engines.decode.steps import Step, direct_step
from lightrft_engines.decode.threads import StepThreads


class Decoder:
    """Writes completions with `module`, which it leaves in the mode and with the weights that it finds.

    `stop_token_ids` end a completion besides those of a request; `pad` fills up prompts where the model needs padding
    (its value is never attended to); `decode` turns completion tokens into text, for requests with stop texts. After
    `time_limit` seconds of a call, what is not done comes back as it is.
    """

    def __init__(
        self,
        module: nn.Module,
        stop_token_ids: Sequence[int] = (),
        pad: int = 0,
        *,
        decode: Decode | None = None,
        max_batch_size: int = 256,
        max_prefill_tokens: int = 8192,
        time_limit: float | None = None,
    ) -> None:
        self.module, self.pad, self.decode = module, pad, decode
        self.stop_token_ids = frozenset(stop_token_ids)
        self.max_batch_size, self.max_prefill_tokens = max_batch_size, max_prefill_tokens
        self.time_limit = math.inf if time_limit is None else time_limit
        self._step: Callable[[], Step] = lambda: direct_step(self.module)
        self._threads: StepThreads | None = StepThreads(module)
        self.device = next(module.parameters()).device
        self.longest_shared = longest_shared(module)
        self.max_positions = _max_positions(module)

    def compile(self) -> None:
        """Run decode steps through `torch.compile`; `UserError` for a model that takes none of our plans."""
        self._require_plans("compile")
        from lightrft_engines.decode.compiled import CompiledStep  # importing the compiler takes a second

        compiled = CompiledStep(self.module)
        self._step, self._threads = lambda: compiled, None  # compiled for a number of threads

    def record(self) -> None:
        """Run decode steps as CUDA graphs; `UserError` for a model that takes none of our plans."""
        self._require_plans("cuda_graphs")
        self._step = lambda: GraphStep(self.module)

    def _require_plans(self, option: str) -> None:
        if not self.longest_shared:
            raise UserError(
                "has no effect: this model's attention cannot be exchanged, so it decodes by transformers' own cache.",
                where=f"engine.{option}",
                hint="Leave it out.",
            )

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        """For each request its completions, one a seed, in order; a row's tokens do not depend on the others'."""
        rows, end = self._rows(requests), self._end()
        with self._evaluating(), torch.inference_mode():
            for sampling, same in _by_distribution(rows, requests).items():
                self._session(same, sampling).run(end)
        completions: list[list[Completion]] = [[] for _ in requests]
        for row in rows:
            completions[row.place[0]].append(row.completion())
        return completions

    def stream(self, requests: Sequence[GenerateRequest]) -> Iterator[Sequence[Row]]:
        """The rows of `generate` while they are written, after each step; distributions take turns."""
        rows, end = self._rows(requests), self._end()
        with self._evaluating():
            sessions = [self._session(same, sampling) for sampling, same in _by_distribution(rows, requests).items()]
            while sessions:
                with torch.inference_mode():  # left at every yield: it would hold for the caller too
                    for session in sessions:
                        session.advance()
                sessions = [session for session in sessions if session.is_open]
                if time.monotonic() >= end:
                    for session in sessions:
                        session.abort()
                    sessions = []
                yield rows

    def _end(self) -> float:
        return time.monotonic() + self.time_limit

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.module.training
        self.module.eval()
        try:
            yield
        finally:
            self.module.train(was_training)

    def _session(self, rows: list[Row], sampling: Sampling) -> Session:
        """Long prompts first, siblings together: what runs at one time is about equally long."""
        for row in rows:
            row.prompt.slot = None
        rows = sorted(rows, key=lambda row: (-len(row.prompt.token_ids), row.place))
        num = min(self.max_batch_size, len(rows))
        return Session(self._reader(rows, num), rows, sampling, num, self.device, self._threads)

    def _reader(self, rows: Sequence[Row], num: int) -> Reader:
        if max(len(row.prompt.token_ids) + row.limit for row in rows) <= self.longest_shared:
            limit = max(row.limit for row in rows)
            return SharedReader(self.module, num, limit, self.max_prefill_tokens, run=self._step())
        return PaddedReader(self.module, self.pad, self.max_prefill_tokens)

    def _rows(self, requests: Sequence[GenerateRequest]) -> list[Row]:
        prompts: dict[tuple[Sampling, tuple[int, ...]], SharedPrompt] = {}
        texts: dict[tuple[str, ...], StopTexts | None] = {(): None}
        rows = []
        for number, request in enumerate(requests):
            sampling, token_ids = request.sampling, request.prompt_token_ids
            limit = self._limit(request)
            if sampling.stop not in texts:
                texts[sampling.stop] = StopTexts(sampling.stop, self._require_decode())
            prompt = prompts.setdefault((_distribution(sampling), token_ids), SharedPrompt(token_ids))
            stops = self.stop_token_ids.union(sampling.stop_token_ids)
            for sibling, seed in enumerate(request.seeds):
                place = (number, sibling)
                rows.append(Row(place, request.prompt_id, prompt, seed, limit, stops, texts[sampling.stop]))
        return rows

    def _limit(self, request: GenerateRequest) -> int:
        """Tokens that a completion may have: as many as asked for, where the model has positions for them."""
        where = f"prompt {request.prompt_id}"
        num, wanted = len(request.prompt_token_ids), request.sampling.max_new_tokens
        if not num:
            raise UserError("the prompt has no tokens", where=where)
        if wanted < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {wanted}")
        if num + wanted - 1 > self.max_positions:  # the last token is not fed
            raise UserError(
                f"{num} tokens and {wanted} new ones are more than the model's {self.max_positions:.0f} positions",
                where=where,
                hint="Lower task.max_prompt_tokens or sampler.max_new_tokens.",
            )
        return wanted

    def _require_decode(self) -> Decode:
        if self.decode is None:
            raise ValueError("requests with stop texts need a decoder that was given `decode`")
        return self.decode


def _by_distribution(rows: Sequence[Row], requests: Sequence[GenerateRequest]) -> dict[Sampling, list[Row]]:
    found: dict[Sampling, list[Row]] = {}
    for row in rows:
        found.setdefault(_distribution(requests[row.place[0]].sampling), []).append(row)
    return found


def _distribution(sampling: Sampling) -> Sampling:
    """What shapes the distribution: rows that agree in it are drawn together."""
    return replace(sampling, max_new_tokens=1, stop=(), stop_token_ids=())


def _max_positions(module: nn.Module) -> float:
    """Positions that the model has; rotary and unembedded ones have no end."""
    config = module.config.get_text_config()
    if config.to_dict().get("rope_parameters") is not None:
        return math.inf
    return float(getattr(config, "max_position_embeddings", math.inf))  # each family has its own name for it
