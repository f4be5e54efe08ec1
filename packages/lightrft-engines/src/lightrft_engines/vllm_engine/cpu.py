"""What vLLM's CPU build needs to be told: the workarounds are here, and nowhere else.

- Linear weights are packed by oneDNN when they are loaded. That leaves parameters of size 0 behind, which take no
  update and prove nothing: `keep_weights_whole` is called in the worker before the model loads.
- A prompt that is read in parts rewinds the random generator of its request, which CPU generators cannot do
  ("CPU Generator does not use offset"): with a seed a request, prompts are read whole.
"""

from typing import Any, Final

ARGUMENTS: Final[dict[str, Any]] = {"enable_chunked_prefill": False}  # Any: values of vLLM's EngineArgs


def keep_weights_whole() -> None:
    """Linear layers compute with the parameters themselves."""
    import vllm._custom_ops as custom_ops

    custom_ops._supports_onednn = False
