"""vLLM's layers, for the proof of what its workers serve."""

from torch import nn
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from lightrft_engines.serving.served import Layers


def renamed(model: nn.Module, name: str) -> str:
    """By the model's own mapping, its fusions left out."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    return str(mapper.get_rename_mapper().map_name(name) or name) if mapper is not None else name


LAYERS = Layers(
    VocabParallelEmbedding,
    QKVParallelLinear,
    MergedColumnParallelLinear,
    ColumnParallelLinear,
    RowParallelLinear,
    renamed,
)
