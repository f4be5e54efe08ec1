"""Tensor parallelism by the plan that a transformers model brings: matrices of a layer are split over ranks.

`colwise` splits a linear layer's outputs, `rowwise` the inputs of the next one, whose partial results are added up
(Megatron-LM, arXiv:1909.08053). Embeddings and output layer are split by the vocabulary where the ranks divide it, and
norms stay whole. torch's DTensor does the work, but for the output layer, which `head_shards` computes.
"""

from lightrft_core.errors import UserError
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from transformers import PreTrainedModel

STYLES: dict[str, type[ParallelStyle]] = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}


def split_layers(module: nn.Module, mesh: DeviceMesh) -> None:
    """Split a model's decoder over the ranks of a mesh, in place; `UserError` where it has no plan that fits."""
    decoder = _decoder(module)
    config = decoder.config.get_text_config()
    whole_plan: dict[str, str] = config.base_model_tp_plan or {}
    plan = {name: style for name, style in whole_plan.items() if style != "embedding_rowwise"}  # it comes below
    unknown = sorted(set(plan.values()) - STYLES.keys())
    if not plan or unknown:
        reason = f"its plan asks for {unknown[0]!r}" if plan else "it has no plan for it"
        raise _refusal(f"{type(decoder).__name__} cannot be split over ranks: {reason}.")
    heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.intermediate_size
    uneven = [count for count in (heads, kv_heads, width) if count % mesh.size()]
    if uneven:
        raise _refusal(
            f"{mesh.size()} ranks cannot share a layer: it has {heads} attention heads, {kv_heads} for keys, "
            f"and {width} hidden features, all of which must divide."
        )
    parallelize_module(decoder, mesh, {name: STYLES[style]() for name, style in plan.items()}, src_data_rank=None)
    if config.vocab_size % mesh.size() == 0:
        _split_vocabulary(module, decoder, mesh)


def _split_vocabulary(module: nn.Module, decoder: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Rows of the embedding, and of the output layer where there is one, which stays tied if it was."""
    embedding, head = decoder.get_input_embeddings(), _head(module)
    is_tied = head is not None and head.weight is embedding.weight
    parallelize_module(embedding, mesh, RowwiseParallel(input_layouts=Replicate()), src_data_rank=None)
    if head is not None:
        parallelize_module(head, mesh, ColwiseParallel(), src_data_rank=None)
    if head is not None and is_tied:
        head.weight = embedding.weight


def _head(module: nn.Module) -> nn.Linear | None:
    head = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
    return head if type(head) is nn.Linear else None


def _decoder(module: nn.Module) -> PreTrainedModel:
    found = [part for part in module.modules() if isinstance(part, PreTrainedModel)]
    if not found:
        raise _refusal(f"{type(module).__name__} is no transformers model, so it brings no plan.")
    decoder: PreTrainedModel = found[0].get_decoder() if found[0].get_decoder() is not None else found[0]
    return decoder


def _refusal(what: str) -> UserError:
    return UserError(what, where="strategy.tensor_parallel", hint="Set it to 1, or to a divisor that fits.")
