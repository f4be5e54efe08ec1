"""Where a trainer's parameter lies among those that an engine serves: renamed, fused with others, cut over ranks.

The engine's models name their own renamings and what they fuse; how a fused or cut parameter is laid out is known to
its layer. vLLM and SGLang share these layers' names and fields. Nothing is known here about any model.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lightrft_engines.fingerprint import sample_positions

ATTENTION = ("q_proj", "k_proj", "v_proj")
FUSIONS = {"qkv_proj": ATTENTION, "gate_up_proj": ("gate_proj", "up_proj")}
Served = Mapping[str, nn.Parameter]
Entries = tuple[int, list[tuple[int, str]]]  # size of a sample; places in it with their values


@dataclass(frozen=True, slots=True)
class Layers:
    """The engine's classes of layers (Any: it is not known here), and a model's own renaming of a parameter."""

    embedding: type[Any]
    qkv: type[Any]
    merged: type[Any]
    column: type[Any]
    row: type[Any]
    renamed: Callable[[nn.Module, str], str]


def layers_in(linear: ModuleType, embedding: ModuleType, renamed: Callable[[nn.Module, str], str]) -> Layers:
    """Those of the engine's two modules, by the names that vLLM and SGLang give them."""
    return Layers(
        embedding.VocabParallelEmbedding,
        linear.QKVParallelLinear,
        linear.MergedColumnParallelLinear,
        linear.ColumnParallelLinear,
        linear.RowParallelLinear,
        renamed,
    )


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


def told(layers: Layers, model: nn.Module, name: str, received: Mapping[str, Sequence[float]]) -> Entries | None:
    """The sample with its values in hexadecimal: exact.

    Quantized weights are other numbers than the trainer's: of these it tells what was `received` to be rounded.
    """
    values = received.get(name)
    found = sample(layers, model, name) if values is None else (len(values), list(enumerate(values)))
    return None if found is None else (found[0], [(place, value.hex()) for place, value in found[1]])


def sample(layers: Layers, model: nn.Module, name: str) -> tuple[int, list[tuple[int, float]]] | None:
    """The sample's size, and the entries of it that this worker serves as (place, value); None: no such parameter."""
    place = find(layers, model, name)
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


def find(layers: Layers, model: nn.Module, name: str) -> Place | None:
    """Where this worker serves a trainer's parameter; None for what is served by no name that is known."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    match = _match(layers, model, parameters, name)
    if match is None:
        return None
    served, part = match
    return _place(layers, model.get_submodule(served.rpartition(".")[0]), parameters[served], part)


def left_out(layers: Layers, model: nn.Module, names: Iterable[str]) -> list[str]:
    """Served parameters that the trainer's named ones do not fill."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found: dict[int, set[int | None]] = {}
    for match in (_match(layers, model, parameters, name) for name in names):
        if match is not None:
            found.setdefault(id(parameters[match[0]]), set()).add(match[1])
    parts = {fused: len(members) for fused, members in _fusions(model).items()}
    return sorted(
        name
        for name, parameter in model.named_parameters()
        if not _is_filled(found.get(id(parameter), set()), parts.get(name.rpartition(".")[0].rpartition(".")[2], 1))
    )


def _is_filled(parts: set[int | None], num: int) -> bool:
    return None in parts or len(parts) == num


def _match(layers: Layers, model: nn.Module, parameters: Served, name: str) -> tuple[str, int | None] | None:
    """The served name, and which part of a fused parameter it is."""
    return next((pair for pair in _names(layers, model, name) if pair[0] in parameters), None)


def _names(layers: Layers, model: nn.Module, name: str) -> Iterator[tuple[str, int | None]]:
    """Names that the parameter may be served by, each with the number of its part in a fused one."""
    for renamed in dict.fromkeys((layers.renamed(model, name), name)):
        yield renamed, None
        for fused, parts in _fusions(model).items():
            for number, part in enumerate(parts):
                before, found, after = renamed.rpartition(f".{part}.")
                if found and part != fused:
                    yield f"{before}.{fused}.{after}", number


def _fusions(model: nn.Module) -> dict[str, Sequence[str]]:
    return {**FUSIONS, **getattr(model, "packed_modules_mapping", {})}


def _place(layers: Layers, layer: Any, parameter: Tensor, part: int | None) -> Place:  # Any: the engine's layer
    if isinstance(layer, layers.embedding):
        rows = layer.shard_indices
        own = parameter[: rows.org_vocab_end_index - rows.org_vocab_start_index]  # what follows is padding
        return _rows([(own, rows.org_vocab_start_index)], layer.org_vocab_size)
    if isinstance(layer, layers.qkv):
        return _fused(parameter, *_heads(layer), part)
    if isinstance(layer, layers.merged):
        own = [size // layer.tp_size for size in layer.output_sizes]
        return _fused(parameter, own, [layer.tp_rank * size for size in own], layer.output_sizes, part)
    dim = _cut(layers, layer, parameter)
    if dim is None:
        return Place(tuple(parameter.shape), 0, (Piece(parameter, 0),))
    shape, size = list(parameter.shape), parameter.shape[dim]
    shape[dim] = size * layer.tp_size
    return Place(tuple(shape), dim, (Piece(parameter, layer.tp_rank * size),))


def _heads(layer: Any) -> tuple[list[int], list[int], list[int]]:  # Any: the engine's fused attention layer
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


def _cut(layers: Layers, layer: Any, parameter: Tensor) -> int | None:  # Any: the engine's layer
    """The dimension along which ranks share a linear layer's parameter; None where each has all of it."""
    if not isinstance(layer, (layers.row, layers.column)) or layer.tp_size == 1:
        return None
    if isinstance(layer, layers.row):
        return 1 if parameter.ndim > 1 else None
    return 0
