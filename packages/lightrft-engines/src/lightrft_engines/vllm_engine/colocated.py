"""vLLM inside the trainer's process: weights are copied from the trainer's tensors, and nothing is serialised.

Under torchrun every rank has a vLLM of its own; with tensor parallelism, consecutive ranks share one copy of the model
and must see the same requests in the same order, so these are gathered, and each rank keeps the answers to its own.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightrft_core.errors import LightRFTError, RunFailed
from lightrft_core.protocols import Setup, Weights

from lightrft_engines.serving.buckets import buckets
from lightrft_engines.serving.engine import Facts, Samples
from lightrft_engines.serving.sharers import Sharers
from lightrft_engines.serving.siblings import Sibling
from lightrft_engines.serving.undisturbed import undisturbed
from lightrft_engines.vllm_engine.config import VllmConfig
from lightrft_engines.vllm_engine.faults import explained
from lightrft_engines.vllm_engine.sampling import settings

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput
    from vllm.v1.engine.llm_engine import LLMEngine

STEPS_BETWEEN_CLOCKS = 16  # engine steps after which ranks that share a model agree on whether time is up
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}


class Colocated:
    """`engine.Backend` by vLLM's library."""

    label = "vLLM"

    def __init__(self, config: VllmConfig, setup: Setup) -> None:
        self._config, self._setup = config, setup
        self._sharers = Sharers(setup.world, config.tensor_parallel)
        self._llm: LLM | None = None
        self._open: dict[str, Sibling] = {}  # what vLLM writes at present, by the names of its requests
        self._num_calls = 0

    def start(self) -> Facts:
        """Load vLLM here; the trainer's random numbers and threads stay as they were."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from lightrft_engines.vllm_engine.arguments import arguments

        found = arguments(self._config, self._setup)
        if (num_ranks := self._setup.world.size) > 1:
            found["distributed_executor_backend"] = "external_launcher"
            found["data_parallel_size"] = num_ranks // self._config.tensor_parallel
        from vllm import LLM

        with undisturbed(), _explained("start"):
            self._llm = LLM(**found)
        facts = self._call("lightrft_facts")
        return Facts(facts["max_model_len"], facts["is_multimodal"])

    def write(self, siblings: Sequence[Sibling]) -> None:
        """Add all requests, then step until they are done or time is up."""
        groups = self._sharers.siblings(siblings)
        for _ in self._steps({f"{rank}-{one.name}": one for rank, group in enumerate(groups) for one in group}):
            continue
        for sibling, written in zip(siblings, groups[self._sharers.place], strict=True):
            if written is not sibling:
                sibling.add(written.token_ids, written.logprobs)
                sibling.finish_reason = written.finish_reason

    def steps(self, siblings: Sequence[Sibling]) -> Iterator[None]:
        """The same for one process: calls that are open together share vLLM's steps."""
        return self._steps({sibling.name: sibling for sibling in siblings})

    def _steps(self, everyone: dict[str, Sibling]) -> Iterator[None]:
        limit = self._config.time_limit
        deadline = time.monotonic() + limit if limit is not None else None
        engine = self._require_llm().llm_engine
        self._num_calls += 1
        named = {f"{self._num_calls}-{name}": sibling for name, sibling in everyone.items()}
        self._open |= named
        try:
            with _explained("generate"):
                _add(engine, named)
                steps = 0
                while self._goes_on(named.values()):
                    self._take(engine.step())
                    steps += 1
                    if deadline is not None and self._is_over(deadline, steps):
                        _abort(engine, named)
                        deadline = None  # other ranks may still write, and vLLM's go on together
                    yield
        finally:
            _abort(engine, named)
            for name in named:
                del self._open[name]

    def load(self, weights: Weights) -> Sequence[str]:
        """Bucket by bucket, from the trainer's tensors into vLLM's."""
        with _explained("take weights"):
            self._call("lightrft_begin")
            for bucket in buckets(weights(), self._config.bucket_mb):
                self._call("lightrft_take", bucket)
            missing: Sequence[str] = self._call("lightrft_finish")
        return missing

    def samples(self, names: Sequence[str]) -> Sequence[Samples]:
        """Of the ranks that share this copy of the model."""
        return self._sharers.gather(self._call("lightrft_sample", json.dumps(list(names))))

    def reset_cache(self) -> None:
        """All three kinds."""
        engine = self._require_llm().llm_engine
        engine.reset_mm_cache()
        engine.reset_encoder_cache()
        if not engine.reset_prefix_cache():
            raise RunFailed("vLLM kept its prefix cache, which is of weights that are gone", where="engine")

    def sleep(self, level: int) -> None:
        """vLLM's sleep mode."""
        self._require_llm().sleep(level)

    def wake(self, tag: str) -> None:
        """One tag at a time, so that weights can come before there is memory for keys and values."""
        self._require_llm().wake_up([tag])

    def close(self) -> None:
        """End the engine core, which frees its memory."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None

    def _call(self, method: str, *args: Any) -> Any:  # Any: what the worker's method takes and returns
        return self._require_llm().collective_rpc(method, args=args)[0]

    def _require_llm(self) -> "LLM":
        if self._llm is None:
            raise RuntimeError("the engine is closed")
        return self._llm

    def _goes_on(self, own: Iterable[Sibling]) -> bool:
        """Whether more is to be written; several ranks step until none of them has any request."""
        if self._setup.world.size == 1:
            return any(sibling.finish_reason is None for sibling in own)
        return bool(self._require_llm().llm_engine.has_unfinished_requests())

    def _take(self, outputs: Iterable["RequestOutput"]) -> None:
        """What one step wrote, whoever asked for it."""
        for output in outputs:
            sibling = self._open[output.request_id]
            written = output.outputs[0]
            token_ids = list(written.token_ids)
            pairs = zip(token_ids, written.logprobs or (), strict=True)
            sibling.add(token_ids, [candidates[token_id].logprob for token_id, candidates in pairs])
            if output.finished:
                sibling.finish(written.finish_reason)

    def _is_over(self, deadline: float, steps: int) -> bool:
        """Ranks that share a model must stop at the same step, so the latest of their clocks decides for all."""
        if self._config.tensor_parallel == 1:
            return time.monotonic() > deadline
        if steps % STEPS_BETWEEN_CLOCKS:
            return False
        import torch
        from vllm.distributed import get_tp_group

        is_late = torch.tensor([float(time.monotonic() > deadline)])
        torch.distributed.all_reduce(is_late, group=get_tp_group().cpu_group)
        return bool(is_late)


def _add(engine: "LLMEngine", named: Mapping[str, Sibling]) -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    for name, sibling in named.items():
        params = SamplingParams(
            **settings(sibling), detokenize=bool(sibling.sampling.stop), output_kind=RequestOutputKind.DELTA
        )
        engine.add_request(name, {"prompt_token_ids": list(sibling.prompt_token_ids)}, params)


def _abort(engine: "LLMEngine", named: Mapping[str, Sibling]) -> None:
    """End what is not done, as it is."""
    if late := {name: sibling for name, sibling in named.items() if sibling.finish_reason is None}:
        engine.abort_request(list(late))
        for sibling in late.values():
            sibling.finish("abort")


@contextmanager
def _explained(doing: str) -> Iterator[None]:
    """vLLM's errors in our words."""
    try:
        yield
    except LightRFTError:
        raise
    except (RuntimeError, ValueError, AssertionError, OSError) as error:
        raise explained(f"{type(error).__name__}: {error}", doing) from error
