"""What LightRFT adds to SGLang's scheduler processes: its draws, where stop texts end, and a proof of what is served.

SGLang starts `run` in place of its own function, and applies hooks where its plug-in interface has them. Questions
come in by the route that reads a weight by its name, because that reaches every rank, in this process and over HTTP;
its answers are numbers, so ours travel as the numbers of their bytes.
"""

import json
import signal
from typing import Any

import torch

from lightrft_engines.decode.rows import TAIL_SLACK
from lightrft_engines.fingerprint import sampled
from lightrft_engines.serving.buckets import read_shared

QUESTION = "lightrft:"
LOADER = "lightrft_engines.sglang_engine.scheduler.load_file"  # a name for `update_weights_from_tensor`
MANAGERS = "sglang.srt.managers"
TARGETS = (
    "sglang.srt.layers.sampler.Sampler.forward",
    "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.from_schedule_batch",
    f"{MANAGERS}.schedule_batch.Req.tail_str",
    f"{MANAGERS}.scheduler_components.weight_updater.SchedulerWeightUpdaterManager.get_weights_by_name",
)


def run(*args: Any, **options: Any) -> None:  # Any: SGLang's own arguments, passed on
    """SGLang's scheduler process with what is added here."""
    _ignore_stops()
    from sglang.srt.managers.scheduler import run_scheduler_process
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from lightrft_engines.sglang_engine.draws import forward

    kinds = (HookType.REPLACE, HookType.AFTER, HookType.REPLACE, HookType.AROUND)
    for target, hook, kind in zip(TARGETS, (forward, seed_rows, tail_text, answer), kinds, strict=True):
        HookRegistry.register(target, hook, kind)
    run_scheduler_process(*args, **options)


def write_texts(*args: Any, **options: Any) -> None:  # Any: as above
    """SGLang's process that makes texts."""
    from sglang.srt.managers.detokenizer_manager import run_detokenizer_process

    _ignore_stops()
    run_detokenizer_process(*args, **options)


def _ignore_stops() -> None:
    """What asks the trainer or the server to stop is meant for them: these processes end with them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def seed_rows(info: Any, cls: type, batch: Any, *rest: Any) -> Any:  # Any: SGLang's batch and its settings
    """Every row of a batch draws by its request's own seed."""
    from lightrft_engines.sglang_engine.draws import shifted_seed

    seeds = [shifted_seed(one.sampling_params.sampling_seed or 0, len(one.origin_input_ids)) for one in batch.reqs]
    info.sampling_seed = torch.tensor(seeds, dtype=torch.int64).to(batch.device, non_blocking=True)
    return info


def tail_text(request: Any, new_accepted_len: int = 1) -> str:  # Any: SGLang's request
    """The text in which stop texts are looked for, as long as the longest of them may be, without special tokens.

    SGLang's own is as many tokens long as the tokenizer would use, and a policy may spell a text by more.
    """
    stops = request.sampling_params.stop_strs
    if not stops:
        return ""
    length = max(len(stop.encode()) for stop in stops) + TAIL_SLACK
    return str(request.tokenizer.decode(request.output_ids[-length:], skip_special_tokens=True))


def load_file(model: Any, named_tensors: Any) -> None:  # Any: SGLang's model; pairs whose names are paths
    """Weights that the trainer put into shared memory; of those that are rounded on arrival the samples are kept."""
    for path, _ in named_tensors:
        bucket = read_shared(path)
        if getattr(model, "quant_config", None) is not None:
            received = {name: sampled(name, tensor) for name, tensor in bucket}
            model.lightrft_received = {**getattr(model, "lightrft_received", {}), **received}
        model.load_weights(bucket)


def answer(original: Any, manager: Any, question: Any) -> Any:  # Any: SGLang's function, manager, request and answer
    """Our questions; others are SGLang's."""
    if not question.name.startswith(QUESTION):
        return original(manager, question)
    from sglang.srt.managers.io_struct import GetWeightsByNameReqOutput

    from lightrft_engines.sglang_engine.served import QUESTIONS

    asked = json.loads(question.name.removeprefix(QUESTION))
    told = QUESTIONS[asked["ask"]](manager, asked["names"])
    group = manager.tp_cpu_group
    all_told = [told] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(all_told, told, group=group)
    return GetWeightsByNameReqOutput(parameter=[float(byte) for byte in json.dumps(all_told).encode()])
