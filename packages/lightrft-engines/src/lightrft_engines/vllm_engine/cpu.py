"""What vLLM's CPU build needs to be told: the workarounds are here, and nowhere else.

- Linear weights are packed by oneDNN when they are loaded. That leaves parameters of size 0 behind, which take no
  update and prove nothing: `keep_weights_whole` is called in the worker before the model loads.
- A prompt that is read in parts rewinds the random generator of its request, which CPU generators cannot do
  ("CPU Generator does not use offset"): with a seed a request, prompts are read whole.
- Ranks that share a model meet in shared memory. Under torchrun its name is the same in every run of this machine, and
  a run that is killed leaves it behind, where the next one fails on it: `meet_in_own_memory` gives it a name of its
  own, and removes the name as soon as every rank is there.
"""

import secrets
from typing import Any, Final

from lightrft_engines.serving.buckets import SHARED

ARGUMENTS: Final[dict[str, Any]] = {"enable_chunked_prefill": False}  # Any: values of vLLM's EngineArgs


def keep_weights_whole() -> None:
    """Linear layers compute with the parameters themselves."""
    import vllm._custom_ops as custom_ops

    custom_ops._supports_onednn = False


def meet_in_own_memory() -> None:
    """The first rank chooses the name; memory lives on without it, until the last of its processes ends."""
    import torch
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    meet = _CPUSHMDistributed._init_cpu_shm

    def meet_once(shared: Any) -> int:  # Any: vLLM's class
        group = shared.communicator.device_group
        names = [f"lightrft-{secrets.token_hex(8)}"]
        torch.distributed.broadcast_object_list(names, group=group, group_src=0)
        (shared.group_name,) = names
        handle: int = meet(shared)
        (SHARED / f"{shared.group_name}_{shared.communicator.rank}").unlink(missing_ok=True)
        return handle

    _CPUSHMDistributed._init_cpu_shm = meet_once
