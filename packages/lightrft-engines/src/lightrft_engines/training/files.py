"""A folder of named tensors in a checkpoint: one safetensors file of whole tensors, or a file of shards from each rank.

Sharded ones go through torch's distributed checkpoints (DCP) in their Hugging Face format: safetensors with the place
of each shard in its head, read again on any number of ranks. Nothing is pickled on the disk.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from lightrft_core.errors import UserError
from lightrft_core.protocols import World
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from lightrft_engines.tensors_io import write_tensors

WHOLE = "whole.safetensors"


def write_folder(folder: Path, tensors: Mapping[str, Tensor], world: World) -> None:
    """Write them; all ranks call it together. Whole tensors are written by rank 0. Raises `OSError`."""
    if not any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        if world.rank == 0:
            folder.mkdir(parents=True)
            write_tensors(folder / WHOLE, tensors)
        return
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save(dict(tensors), storage_writer=writer)


def read_folder(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was written, each tensor in the form of `like`'s: plain ones whole, of DTensors this rank's shards alone.

    Other ranks need not take part. `UserError` names the first tensor that is not as in `like`.
    """
    if not folder.is_dir():
        raise UserError(f"the checkpoint has no folder {folder.name}.", where=str(folder.parent), hint=_HINT)
    reader = HuggingFaceStorageReader(str(folder))
    sizes = {name: tuple(item.size) for name, item in reader.read_metadata().state_dict_metadata.items()}
    _require_same(folder, sizes, like)
    found = {name: torch.empty_like(tensor, requires_grad=False) for name, tensor in like.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DCP warns that each rank reads alone, which is meant
        dcp.load(found, storage_reader=reader, no_dist=True)
    return {name: tensor.to_local() if isinstance(tensor, DTensor) else tensor for name, tensor in found.items()}


_HINT = "Resume with the model and the parts that the run was started with."


def _require_same(folder: Path, sizes: Mapping[str, tuple[int, ...]], like: Mapping[str, Tensor]) -> None:
    for name, tensor in like.items():
        if name not in sizes:
            raise _other_model(folder, f"it has no {name}")
        if sizes[name] != tuple(tensor.shape):
            raise _other_model(folder, f"{name} has shape {list(sizes[name])}, here it is {list(tensor.shape)}")
    unknown = sorted(sizes.keys() - like.keys())
    if unknown:
        raise _other_model(folder, f"it has {unknown[0]}, which is not here")


def _other_model(folder: Path, reason: str) -> UserError:
    where = f"{folder.parent.name}/{folder.name}"
    return UserError(f"{where} belongs to another model: {reason}.", where=str(folder.parent.parent), hint=_HINT)
