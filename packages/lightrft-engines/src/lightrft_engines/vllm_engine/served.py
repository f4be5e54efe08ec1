"""vLLM's layers, for the proof of what its workers serve."""

from torch import nn
from vllm.model_executor.layers import linear, vocab_parallel_embedding

from lightrft_engines.serving.served import layers_in


def renamed(model: nn.Module, name: str) -> str:
    """By the model's own mapping, its fusions left out."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    return str(mapper.get_rename_mapper().map_name(name) or name) if mapper is not None else name


LAYERS = layers_in(linear, vocab_parallel_embedding, renamed)
