"""The engine that generates with the trainer's own module: no copy, no sync, no server.

Where the trainer's weights are sharded it keeps a copy of its own, which takes the trained values over at each sync.

Keys and values live only while `generate` runs, so there is no cache that could be stale, and nothing to put to sleep.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence

import torch
from lightrft_core.abilities import Piece
from lightrft_core.data import Completion, GenerateRequest
from lightrft_core.errors import UserError
from lightrft_core.protocols import Setup, Weights
from torch import Tensor, nn

from lightrft_engines.decode.decoder import Decoder
from lightrft_engines.decode.rounded import RoundedLinear, rounded_twin
from lightrft_engines.decode.rows import Row
from lightrft_engines.embedded_config import EmbeddedConfig
from lightrft_engines.fingerprint import fingerprint
from lightrft_engines.training.placement import cast_parameters, choose_device, choose_dtype

log = logging.getLogger(__name__)


class EmbeddedEngine:
    """`protocols.Engine` on the strategy's policy, in place; on a copy where there is none in this process."""

    def __init__(self, config: EmbeddedConfig, setup: Setup) -> None:
        adapter = setup.require_model()
        policy = setup.strategy.policy if setup.strategy is not None else None
        self._is_in_place = policy is not None
        self._module: nn.Module = adapter.load("policy") if policy is None else policy
        self._rounded: dict[str, RoundedLinear] = {}
        self._arrived: dict[str, float] = {}
        if setup.strategy is None:
            _place(self._module)
        elif policy is None:
            self._take(setup.strategy.weights)
        self._decoder = Decoder(
            self._module,
            adapter.stop_token_ids,
            decode=adapter.decode,
            max_batch_size=config.max_batch_size,
            max_prefill_tokens=config.max_prefill_tokens,
            time_limit=config.time_limit,
        )
        if config.quantization is not None:
            self._round(setup)
        if config.compile:
            self._decoder.compile()
        if config.cuda_graphs:
            self._require("cuda", "cuda_graphs", "Leave it out, or train on a GPU.")
            self._decoder.record()
        self._version = 0

    @property
    def version(self) -> int:
        """Version of the weights that are served."""
        return self._version

    @property
    def module(self) -> nn.Module:
        """What it runs: the strategy's policy itself, where there is a strategy."""
        return self._module

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        """See `protocols.Engine`; `RunFailed` names the prompt where logits are not finite."""
        _refuse_media(requests)
        return self._decoder.generate(requests)

    def stream(self, requests: Sequence[GenerateRequest]) -> Iterator[Sequence[Piece]]:
        """See `abilities.StreamingEngine`; errors as `generate`."""
        _refuse_media(requests)
        told: dict[tuple[int, int], int] = {}
        for rows in self._decoder.stream(requests):
            new = [row for row in rows if len(row.token_ids) > told.get(row.place, 0) or row.finish_reason == "abort"]
            yield [_piece(row, told.get(row.place, 0)) for row in new]
            told |= {row.place: len(row.token_ids) for row in new}

    def update_weights(self, weights: Weights, version: int) -> None:
        """In place the trained values are already here, and `weights` is not read; a copy takes them over."""
        if not self._is_in_place:
            self._take(weights)
        elif self._rounded:
            self._round_anew(dict(self._module.named_parameters()))
        self._version = version

    def fingerprint(self, names: Sequence[str]) -> Mapping[str, float]:
        """Computed from the parameters that generate, and for rounded ones from what arrived to be rounded."""
        parameters = dict(self._module.named_parameters(remove_duplicate=False))
        arrived = self._arrived
        return {name: arrived[name] if name in arrived else fingerprint(name, parameters[name]) for name in names}

    def reset_cache(self) -> None:
        """Nothing outlives a call of `generate`."""

    def sleep(self) -> None:
        """The trainer needs the module itself, and all else is freed already."""

    def wake(self) -> None:
        """Always ready."""

    def close(self) -> None:
        """The module belongs to the strategy, and a copy goes with this object."""

    def _round(self, setup: Setup) -> None:
        """Decode with a rounded twin; where the module is this engine's own, only the twin stays."""
        self._require("cpu", "quantization", "Leave it out, or use the engine `vllm` with quantization fp8.")
        if "old_logprobs" not in setup.needs:
            log.warning("engine.quantization without a correction: what is sampled is not quite the trained policy")
        whole = dict(self._module.named_parameters())
        twin, self._rounded = rounded_twin(self._module)
        self._arrived = {name: fingerprint(name, whole[name]) for name in self._rounded}
        if not self._rounded:
            raise UserError(
                "has no effect: the model has no linear layers that could be rounded.",
                where="engine.quantization",
                hint="Leave it out.",
            )
        self._decoder.module = twin
        if not self._is_in_place:
            self._module = twin

    def _require(self, kind: str, option: str, hint: str) -> None:
        device = self._decoder.device.type
        if device != kind:
            raise UserError(
                f"works where the model is on {kind}, and it is on {device}.", where=f"engine.{option}", hint=hint
            )

    def _round_anew(self, values: Mapping[str, Tensor]) -> None:
        for name in values.keys() & self._rounded.keys():
            self._rounded[name].take(values[name].detach())
            self._arrived[name] = fingerprint(name, values[name])

    def _take(self, weights: Weights) -> None:
        parameters = dict(self._module.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, value in weights():
                if name in self._rounded:
                    self._round_anew({name: value})
                    continue
                parameter = parameters[name]
                if (parameter.dtype, parameter.device) == (value.dtype, value.device):
                    parameter.copy_(value)
                else:
                    parameter.data = value.clone()


def _place(module: nn.Module) -> None:
    """Where no strategy did: on this process's GPU if there is one, in the numbers that run fast there."""
    device = choose_device("auto")
    cast_parameters(module, choose_dtype("auto", device))
    module.to(device)


def _piece(row: Row, start: int) -> Piece:
    return Piece(row.place, tuple(row.token_ids[start:]), tuple(row.logprobs[start:]), row.finish_reason)


def _refuse_media(requests: Sequence[GenerateRequest]) -> None:
    for request in requests:
        if request.media:
            raise UserError(
                f"prompt {request.prompt_id} has {request.media[0].kind}s, and the embedded engine reads text.",
                where="engine",
                hint="Choose an engine that provides them: `lightrft plugins list` shows which do.",
            )
