"""Reading a folder of named tensors from a checkpoint, whoever wrote it: files of whole tensors, of shards, of shares.

Each rank reads alone, and of shards only what its own need. `shares` writes them; nothing is pickled on the disk.
"""

import warnings
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import TypeAlias

import torch
import torch.distributed.checkpoint as dcp
from lightrft_core.errors import UserError
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from lightrft_engines.training.spans import Span

BATCH = 1 << 28  # entries that are read whole at one time, to be cut

Filed: TypeAlias = Tensor | Span


def check_folder(folder: Path, like: Mapping[str, Filed]) -> None:
    """`UserError` names the first tensor that is not there whole, or not as in `like`. Contents are not read."""
    if not folder.is_dir():
        raise UserError(f"the checkpoint has no folder {folder.name}.", where=str(folder.parent), hint=_HINT)
    found: dict[str, TensorStorageMetadata] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    _require_same(folder, found, like)


def read_folder(folder: Path, into: Mapping[str, Filed]) -> dict[str, Tensor]:
    """What was written, in the form of `into`'s: plain tensors whole, of others this rank's part alone.

    Tensors are filled in place, so that no second copy is made; of spans the parts are new. `check_folder` goes before.
    """
    reader = HuggingFaceStorageReader(str(folder))
    spans = {name: item for name, item in into.items() if isinstance(item, Span)}
    found = {name: item.detach() for name, item in into.items() if isinstance(item, Tensor)}
    if found:
        _load(found, reader)
    parts = {name: tensor.to_local() if isinstance(tensor, DTensor) else tensor for name, tensor in found.items()}
    for batch in _batches(spans):
        wholes = {name: torch.empty(span.shape, dtype=span.entries_N.dtype) for name, span in batch.items()}
        _load(wholes, reader)
        parts |= {name: span.cut(wholes[name]).to(span.entries_N.device, copy=True) for name, span in batch.items()}
    return parts


def _load(tensors: dict[str, Tensor], reader: HuggingFaceStorageReader) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DCP warns that each rank reads alone, which is meant
        dcp.load(tensors, storage_reader=reader, no_dist=True)


def _batches(spans: Mapping[str, Span]) -> Iterator[dict[str, Span]]:
    batch: dict[str, Span] = {}
    entries = 0
    for name, span in spans.items():
        if batch and entries + span.shape.numel() > BATCH:
            yield batch
            batch, entries = {}, 0
        batch[name] = span
        entries += span.shape.numel()
    if batch:
        yield batch


_HINT = "Resume with the model and the parts that the run was started with."


def _require_same(folder: Path, found: Mapping[str, TensorStorageMetadata], like: Mapping[str, Filed]) -> None:
    for name, tensor in like.items():
        if name not in found:
            raise _other_model(folder, f"it has no {name}")
        size, held = found[name].size, sum(prod(chunk.sizes) for chunk in found[name].chunks)
        if held < prod(size):
            what = f"{folder.parent.name}/{folder.name} lacks a part of {name}: the file of a rank is missing."
            raise UserError(what, where=str(folder.parent.parent), hint="Resume from another checkpoint.")
        if tuple(size) != tuple(tensor.shape):
            raise _other_model(folder, f"{name} has shape {list(size)}, here it is {list(tensor.shape)}")
    unknown = sorted(found.keys() - like.keys())
    if unknown:
        raise _other_model(folder, f"it has {unknown[0]}, which is not here")


def _other_model(folder: Path, reason: str) -> UserError:
    where = f"{folder.parent.name}/{folder.name}"
    other = "model or optimizer" if folder.name == "optimizer" else "model"
    return UserError(f"{where} belongs to another {other}: {reason}.", where=str(folder.parent.parent), hint=_HINT)
