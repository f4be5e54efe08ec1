"""The engine that generates with the trainer's own module: no copy, no sync, no server.

Where the trainer's weights are sharded it keeps a copy of its own, which takes the trained values over at each sync.

Keys and values live only while `generate` runs, so there is no cache that could be stale, and nothing to put to sleep.
"""

from collections.abc import Mapping, Sequence

import torch
from lightrft_core.data import Completion, GenerateRequest
from lightrft_core.errors import UserError
from lightrft_core.protocols import Setup, Weights
from torch import nn

from lightrft_engines.decode.decoder import Decoder
from lightrft_engines.embedded_config import EmbeddedConfig
from lightrft_engines.fingerprint import fingerprint


class EmbeddedEngine:
    """`protocols.Engine` on the strategy's policy, in place; on a copy where there is none in this process."""

    def __init__(self, config: EmbeddedConfig, setup: Setup) -> None:
        adapter = setup.require_model()
        policy = setup.strategy.policy if setup.strategy is not None else None
        self._is_in_place = policy is not None
        self._module: nn.Module = adapter.load("policy") if policy is None else policy
        if setup.strategy is not None and policy is None:
            self._take(setup.strategy.weights)
        self._decoder = Decoder(
            self._module,
            adapter.stop_token_ids,
            decode=adapter.decode,
            max_batch_size=config.max_batch_size,
            max_prefill_tokens=config.max_prefill_tokens,
        )
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
        for request in requests:
            if request.media:
                raise UserError(
                    f"prompt {request.prompt_id} has {request.media[0].kind}s, and the embedded engine reads text.",
                    where="engine",
                    hint="Choose an engine that provides them: `lightrft plugins list` shows which do.",
                )
        return self._decoder.generate(requests)

    def update_weights(self, weights: Weights, version: int) -> None:
        """In place the trained values are already here, and `weights` is not read; a copy takes them over."""
        if not self._is_in_place:
            self._take(weights)
        self._version = version

    def fingerprint(self, names: Sequence[str]) -> Mapping[str, float]:
        """Computed from the parameters that generate."""
        parameters = dict(self._module.named_parameters(remove_duplicate=False))
        return {name: fingerprint(name, parameters[name]) for name in names}

    def reset_cache(self) -> None:
        """Nothing outlives a call of `generate`."""

    def sleep(self) -> None:
        """The trainer needs the module itself, and all else is freed already."""

    def wake(self) -> None:
        """Always ready."""

    def close(self) -> None:
        """The module belongs to the strategy, and a copy goes with this object."""

    def _take(self, weights: Weights) -> None:
        parameters = dict(self._module.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, value in weights():
                parameter = parameters[name]
                if (parameter.dtype, parameter.device) == (value.dtype, value.device):
                    parameter.copy_(value)
                else:
                    parameter.data = value.clone()
