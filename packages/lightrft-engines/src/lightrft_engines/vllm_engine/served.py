"""Where a trainer's parameter lies among the parameters that vLLM serves: renamed, fused with others, cut over ranks.

vLLM's models name their own renamings (`hf_to_vllm_mapper`) and what they fuse; how a fused or cut parameter is laid
out is known to its layer. Nothing is known here about any model.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearBase,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from lightrft_engines.fingerprint import sample_positions

ATTENTION = ("q_proj", "k_proj", "v_proj")
FUSIONS = {"qkv_proj": ATTENTION, "gate_up_proj": ("gate_proj", "up_proj")}


@dataclass(frozen=True, slots=True)
class Piece:
    """What this worker holds of a whole parameter: along `dim`, from `start` on."""

    part: Tensor
    start: int


@dataclass(frozen=True, slots=True)
class Place:
    """A whole parameter's shape, the dimension along which it is cut, and the pieces of it that are here."""

    shape: tuple[int, ...]
    dim: int
    pieces: tuple[Piece, ...]


def sample(model: nn.Module, name: str) -> tuple[int, list[tuple[int, float]]] | None:
    """The sample's size, and the entries of it that this worker serves as (place, value); None: no such parameter."""
    place = find(model, name)
    if place is None:
        return None
    positions = torch.tensor(list(sample_positions(name, math.prod(place.shape))), dtype=torch.long)
    axes = torch.unravel_index(positions, place.shape)
    entries: list[tuple[int, float]] = []
    for piece in place.pieces:
        along = axes[place.dim] - piece.start
        here = (along >= 0) & (along < piece.part.shape[place.dim])
        index = [along[here] if dim == place.dim else axis[here] for dim, axis in enumerate(axes)]
        values = piece.part.detach()[tuple(axis.to(piece.part.device) for axis in index)]
        entries += zip(here.nonzero().flatten().tolist(), values.cpu().double().tolist(), strict=True)
    return len(positions), entries


def find(model: nn.Module, name: str) -> Place | None:
    """Where this worker serves a trainer's parameter; None for what is served by no name that is known."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for served, part in _names(model, name):
        if served in parameters:
            return _place(model.get_submodule(served.rpartition(".")[0]), parameters[served], part)
    return None


def _names(model: nn.Module, name: str) -> Iterator[tuple[str, int | None]]:
    """Names that the parameter may be served by, each with the number of its part in a fused one."""
    for renamed in dict.fromkeys((_renamed(model, name), name)):
        yield renamed, None
        for fused, parts in {**FUSIONS, **getattr(model, "packed_modules_mapping", {})}.items():
            for number, part in enumerate(parts):
                before, found, after = renamed.rpartition(f".{part}.")
                if found and part != fused:
                    yield f"{before}.{fused}.{after}", number


def _renamed(model: nn.Module, name: str) -> str:
    """By the model's own mapping, its fusions left out."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    return str(mapper.get_rename_mapper().map_name(name) or name) if mapper is not None else name


def _place(layer: nn.Module, parameter: Tensor, part: int | None) -> Place:
    if isinstance(layer, VocabParallelEmbedding):
        rows = layer.shard_indices
        own = parameter[: rows.org_vocab_end_index - rows.org_vocab_start_index]  # what follows is padding
        return _rows([(own, rows.org_vocab_start_index)], layer.org_vocab_size)
    if isinstance(layer, QKVParallelLinear):
        return _fused(parameter, *_heads(layer), part)
    if isinstance(layer, MergedColumnParallelLinear):
        own = [size // layer.tp_size for size in layer.output_sizes]
        return _fused(parameter, own, [layer.tp_rank * size for size in own], layer.output_sizes, part)
    dim = _cut(layer, parameter)
    if dim is None:
        return Place(tuple(parameter.shape), 0, (Piece(parameter, 0),))
    shape, size = list(parameter.shape), parameter.shape[dim]
    shape[dim] = size * layer.tp_size
    return Place(tuple(shape), dim, (Piece(parameter, layer.tp_rank * size),))


def _heads(layer: QKVParallelLinear) -> tuple[list[int], list[int], list[int]]:
    """Rows of queries, keys and values: how many are here, from which on, of how many.

    Where there are more ranks than key heads, several ranks hold the same head.
    """
    width, wide = layer.head_size, layer.v_head_size
    keys = layer.num_kv_heads
    first = layer.tp_rank // layer.num_kv_head_replicas * keys
    own = [layer.num_heads * width, keys * width, keys * wide]
    starts = [layer.tp_rank * layer.num_heads * width, first * width, first * wide]
    return (
        own,
        starts,
        [layer.total_num_heads * width, layer.total_num_kv_heads * width, layer.total_num_kv_heads * wide],
    )


def _fused(
    parameter: Tensor, own: Sequence[int], starts: Sequence[int], whole: Sequence[int], part: int | None
) -> Place:
    """One part of a fused parameter, or all of them, one after the other as the trainer has them."""
    chosen = range(len(own)) if part is None else [part]
    pieces, before = [], 0
    for number in chosen:
        rows = parameter.narrow(0, sum(own[:number]), own[number])
        pieces.append((rows, before + starts[number]))
        before += whole[number]
    return _rows(pieces, before)


def _rows(pieces: Sequence[tuple[Tensor, int]], whole: int) -> Place:
    shape = (whole, *pieces[0][0].shape[1:])
    return Place(shape, 0, tuple(Piece(part, start) for part, start in pieces))


def _cut(layer: nn.Module, parameter: Tensor) -> int | None:
    """The dimension along which ranks share a linear layer's parameter; None where each has all of it."""
    if not isinstance(layer, LinearBase) or layer.tp_size == 1:
        return None
    if isinstance(layer, RowParallelLinear):
        return 1 if parameter.ndim > 1 else None
    return 0 if isinstance(layer, ColumnParallelLinear) else None
