"""What engines beside the trainer have in common: siblings, weights with a version and a proof, sleep by tags."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, runtime_checkable

from lightrft_core.abilities import Piece
from lightrft_core.data import Completion, GenerateRequest
from lightrft_core.errors import RunFailed, UserError
from lightrft_core.protocols import Setup, Weights

from lightrft_engines.fingerprint import weigh
from lightrft_engines.serving.options import ServedConfig
from lightrft_engines.serving.siblings import Sibling, check_lengths, completions_of, siblings_of

log = logging.getLogger(__name__)
Sample = tuple[int, Sequence[tuple[int, str]]]  # size of a parameter's sample, and (place, value in hexadecimal)
Samples = Mapping[str, Sample | None]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a started engine says of itself."""

    max_model_len: int
    is_multimodal: bool


class Backend(Protocol):
    """An engine in one of its places. All ranks call every method together."""

    label: str
    """What messages call it."""

    def start(self) -> Facts:
        """Be ready to take weights."""

    def write(self, siblings: Sequence[Sibling]) -> None:
        """Write this rank's completions; what a time limit cuts off keeps what it has."""

    def load(self, weights: Weights) -> Sequence[str]:
        """Serve other weights; returns served parameters that were left out."""

    def samples(self, names: Sequence[str]) -> Sequence[Samples]:
        """What each worker serves of the parameters' samples."""

    def reset_cache(self) -> None:
        """Forget prefixes, images and what encoders made of them; `RunFailed` where that was not possible."""

    def sleep(self, level: int) -> None:
        """Give memory back."""

    def wake(self, tag: str) -> None:
        """Take the memory of `weights` or `kv_cache` again."""

    def close(self) -> None:
        """Free everything."""


@runtime_checkable
class StreamingBackend(Protocol):
    """One whose steps can be watched."""

    def steps(self, siblings: Sequence[Sibling]) -> Iterator[None]:
        """What `write` does, in turns, after each of which siblings may hold more. Closed early, it writes no more."""


class ServedEngine:
    """`protocols.Engine` on such a backend."""

    def __init__(self, config: ServedConfig, setup: Setup, backend: Backend) -> None:
        adapter = setup.require_model()
        self._config, self._setup, self._backend = config, setup, backend
        self._stop_token_ids = adapter.stop_token_ids
        self._version = 0
        self._asleep: set[str] = set()
        try:
            self._facts = backend.start()
            if not self._facts.is_multimodal:
                _refuse_idle(config)
            if setup.strategy is not None:
                self._load(setup.strategy.weights)
        except BaseException:
            backend.close()
            raise
        if config.quantization is not None and "old_logprobs" not in setup.needs:
            log.warning("engine.quantization without a correction: what is sampled is not quite the trained policy")

    @property
    def version(self) -> int:
        """Version of the weights that are served."""
        return self._version

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        """See `protocols.Engine`; past `engine.time_limit` completions come back as they are, marked `abort`."""
        siblings = self._begin(requests)
        self._backend.write(siblings)
        return completions_of(siblings, len(requests))

    def stream(self, requests: Sequence[GenerateRequest]) -> Iterator[Sequence[Piece]]:
        """See `abilities.StreamingEngine`; from a server, and with several ranks, completions come at the end."""
        siblings = self._begin(requests)
        if not isinstance(self._backend, StreamingBackend) or self._setup.world.size > 1:
            self._backend.write(siblings)
            yield [sibling.piece(0) for sibling in siblings]
            return
        open_siblings, told = siblings, {sibling.place: 0 for sibling in siblings}
        for _ in chain(self._backend.steps(siblings), (None,)):  # at last, what another call's steps wrote
            new = [one for one in open_siblings if one.finish_reason or len(one.token_ids) > told[one.place]]
            pieces = [one.piece(told[one.place]) for one in new]
            told |= {one.place: len(one.token_ids) for one in new}
            open_siblings = [one for one in open_siblings if one.finish_reason is None]
            yield pieces  # until the next turn, steps of other calls may write more

    def update_weights(self, weights: Weights, version: int) -> None:
        """In buckets; then every cache of the old weights is gone."""
        self._load(weights)
        self._version = version

    def fingerprint(self, names: Sequence[str]) -> Mapping[str, float]:
        """Computed from what the workers serve, wherever it lies there; NaN where their parts disagree or lack some."""
        samples = self._backend.samples(names)
        label = self._backend.label
        return {name: _merged(label, name, [worker[name] for worker in samples]) for name in names}

    def reset_cache(self) -> None:
        """Prefixes, images, encoder outputs."""
        self._backend.reset_cache()

    def sleep(self) -> None:
        """Give memory back, where `engine.sleep` is set."""
        if self._config.sleep and not self._asleep:
            self._backend.sleep(self._config.sleep_level)
            self._asleep = {"weights", "kv_cache"}

    def wake(self) -> None:
        """Weights first, and where these were dropped the trainer's; then memory for keys and values."""
        if "weights" in self._asleep and self._config.sleep_level == 2:
            self._load(self._setup.require_strategy().weights)
        for tag in ("weights", "kv_cache"):
            self._wake(tag)

    def close(self) -> None:
        """Free everything; a server that was started ends."""
        self._backend.close()

    def _begin(self, requests: Sequence[GenerateRequest]) -> list[Sibling]:
        check_lengths(requests, self._facts.max_model_len, "engine.max_model_len")
        _refuse_media(requests, self._backend.label)
        self.wake()
        return siblings_of(requests, self._stop_token_ids)

    def _load(self, weights: Weights) -> None:
        self._wake("weights")
        if missing := self._backend.load(weights):
            raise RunFailed(
                f"{self._backend.label} serves parameters that the trainer did not send, {missing[0]} among them",
                where="engine",
                hint="To it the model is another than the trainer's: use the engine `embedded`.",
            )
        self._backend.reset_cache()

    def _wake(self, tag: str) -> None:
        if tag in self._asleep:
            self._backend.wake(tag)
            self._asleep.discard(tag)


def _merged(label: str, name: str, parts: Sequence[Sample | None]) -> float:
    """The fingerprint, from what several workers hold; where two hold the same entry they must agree."""
    values: dict[int, str] = {}
    sizes = {part[0] for part in parts if part is not None}
    if not sizes:
        raise RunFailed(
            f"{label} serves no parameter that is known to be the trainer's {name}",
            where="engine",
            hint="So it cannot be proven that its weights are the trained ones: use the engine `embedded`.",
        )
    for place, value in (entry for part in parts if part is not None for entry in part[1]):
        if values.setdefault(place, value) != value:
            return float("nan")
    if len(sizes) != 1 or len(values) != min(sizes):
        return float("nan")
    return weigh([float.fromhex(values[place]) for place in sorted(values)])


def _refuse_idle(config: ServedConfig) -> None:
    for name in ("max_images", "max_videos"):
        if getattr(config, name) is not None:
            raise UserError("has no effect: the model reads text only.", where=f"engine.{name}", hint="Leave it out.")


def _refuse_media(requests: Sequence[GenerateRequest], label: str) -> None:
    for request in requests:
        if request.media:
            raise UserError(
                f"prompt {request.prompt_id} has {request.media[0].kind}s, and the adapter prepares none for {label}.",
                where="model.use",
                hint="Choose an adapter and an engine that provide them: `lightrft plugins list` shows which do.",
            )
