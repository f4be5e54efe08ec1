"""What an SGLang worker tells of the weights that it serves."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sglang.srt.layers import linear, vocab_parallel_embedding
from sglang.srt.plugins.hook_registry import HookRegistry
from torch import nn

from lightrft_engines.serving.served import Entries, layers_in, left_out, told
from lightrft_engines.sglang_engine.scheduler import LOADER, TARGETS


def renamed(model: nn.Module, name: str) -> str:
    """By the model's own mapping."""
    mapper = getattr(model, "hf_to_sglang_mapper", None)
    return str(mapper._map_name(name) or name) if mapper is not None else name


LAYERS = layers_in(linear, vocab_parallel_embedding, renamed)


def facts(manager: Any, names: Sequence[str]) -> dict[str, Any]:  # Any: SGLang's weight updater; plain values
    """What the engine wants to know; the context is what prompt and completion may have together."""
    return {
        "max_model_len": manager.scheduler.max_req_len - 1,
        "is_multimodal": bool(manager.tp_worker.model_runner.model_config.is_multimodal),
        "takes_files": LOADER in manager.tp_worker.model_runner.weight_updater.custom_weight_loaders,
        "lacks": [target for target in TARGETS if target not in HookRegistry._patched],
    }


def samples(manager: Any, names: Sequence[str]) -> dict[str, Entries | None]:  # Any: as above
    """Of each parameter the entries of its sample that this worker serves."""
    model = manager.tp_worker.model_runner.model
    return {name: told(LAYERS, model, name, getattr(model, "lightrft_received", {})) for name in names}


def missing(manager: Any, names: Sequence[str]) -> list[str]:  # Any: as above
    """Parameters that an update with these names leaves as they were; scales, which no trainer sends, do not count."""
    model = manager.tp_worker.model_runner.model
    return left_out(LAYERS, model, names) if getattr(model, "quant_config", None) is None else []


def reset(manager: Any, names: Sequence[str]) -> bool:  # Any: as above
    """Forget prefixes; False while something is written. On a CPU SGLang would also collect garbage, for long."""
    return bool(manager.flush_cache(empty_cache=manager.tp_worker.model_runner.device != "cpu"))


def abort(manager: Any, names: Sequence[str]) -> bool:  # Any: as above
    """End these requests as they are. SGLang's own route forgets one that it meets before the scheduler knows it."""
    from sglang.srt.managers.io_struct import AbortReq

    for name in names:
        manager.scheduler.abort_request(AbortReq(rid=name))
    return True


QUESTIONS: Mapping[str, Callable[[Any, Sequence[str]], Any]] = {
    "facts": facts,
    "samples": samples,
    "missing": missing,
    "reset": reset,
    "abort": abort,
}
