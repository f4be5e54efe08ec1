"""What LightRFT adds to vLLM's workers: weights in buckets, and a proof of what is served.

vLLM mixes this class into its worker (`worker_extension_cls`), in whichever process that lives; the methods are called
by name through `collective_rpc`, over HTTP with texts for arguments.

vLLM imports this module before it loads the model, so this is where its CPU build gets the workarounds of `cpu.py`.
"""

import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import set_current_vllm_config
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from lightrft_engines.fingerprint import sampled
from lightrft_engines.serving.buckets import read_shared
from lightrft_engines.serving.served import Entries, told
from lightrft_engines.vllm_engine.cpu import keep_weights_whole, meet_in_own_memory
from lightrft_engines.vllm_engine.served import LAYERS

keep_weights_whole()
meet_in_own_memory()


class Worker:
    """Mixed into vLLM's worker; names begin with `lightrft_` so that they never meet one of its own."""

    model_runner: Any  # vLLM's, of whichever platform
    vllm_config: Any  # vLLM's
    model_config: Any  # vLLM's

    def lightrft_begin(self) -> None:
        """An update begins: layers take their weights as from a checkpoint, and are processed anew when complete."""
        self._lightrft_received: dict[str, list[float]] = {}
        self._lightrft_loaded: set[str] = set()
        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(self._lightrft_model)

    def lightrft_take_file(self, path: str) -> None:
        """A bucket that the trainer put into shared memory."""
        self.lightrft_take(read_shared(path))

    def lightrft_take(self, bucket: Iterable[tuple[str, Tensor]]) -> None:
        """A bucket; parameters by the trainer's names."""
        pairs = list(bucket)
        if self.model_config.quantization is not None:
            self._lightrft_received |= {name: sampled(name, tensor) for name, tensor in pairs}
        with set_current_vllm_config(self.vllm_config), torch.no_grad():
            self._lightrft_loaded |= self._lightrft_model.load_weights(pairs) or set()

    def lightrft_finish(self) -> list[str]:
        """The update is complete; returns served parameters that it left out."""
        model = self._lightrft_model
        with set_current_vllm_config(self.vllm_config):
            finalize_layerwise_reload(model, self.model_config)
        if self.model_config.quantization is not None:
            return []  # scales are served too, and no trainer sends them
        return sorted(name for name, _ in model.named_parameters() if name not in self._lightrft_loaded)

    def lightrft_sample(self, names: str) -> dict[str, Entries | None]:
        """Of each parameter (a JSON list of names) the entries of its sample that this worker serves."""
        received = getattr(self, "_lightrft_received", {})
        return {name: told(LAYERS, self._lightrft_model, name, received) for name in json.loads(names)}

    def lightrft_facts(self) -> dict[str, Any]:  # Any: plain values
        """What the engine wants to know of the worker's side."""
        return {
            "dtype": str(self.model_config.dtype).removeprefix("torch."),
            "max_model_len": self.model_config.max_model_len,
            "logprobs_mode": self.model_config.logprobs_mode,
            "is_multimodal": bool(self.model_config.is_multimodal_model),
        }

    @property
    def _lightrft_model(self) -> nn.Module:
        model: nn.Module = self.model_runner.get_model()
        return model
