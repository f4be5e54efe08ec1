"""Tensor parallelism by the plan that a transformers model brings: matrices of a layer are split over ranks.

`colwise` splits a linear layer's outputs, `rowwise` the inputs of the next one, whose partial results are added up
(Megatron-LM, arXiv:1909.08053). torch's DTensor does the work; embeddings, norms and the output layer stay whole.
"""

from lightrft_core.errors import UserError
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from transformers import PreTrainedModel

STYLES: dict[str, type[ParallelStyle]] = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}


def split_layers(module: nn.Module, mesh: DeviceMesh) -> None:
    """Split a model's decoder over the ranks of a mesh, in place; `UserError` where it has no plan that fits."""
    decoder = _decoder(module)
    config = decoder.config.get_text_config()
    plan: dict[str, str] = dict(config.base_model_tp_plan or {})
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


def _decoder(module: nn.Module) -> PreTrainedModel:
    found = [part for part in module.modules() if isinstance(part, PreTrainedModel)]
    if not found:
        raise _refusal(f"{type(module).__name__} is no transformers model, so it brings no plan.")
    decoder: PreTrainedModel = found[0].get_decoder() if found[0].get_decoder() is not None else found[0]
    return decoder


def _refusal(what: str) -> UserError:
    return UserError(what, where="strategy.tensor_parallel", hint="Set it to 1, or to a divisor that fits.")
