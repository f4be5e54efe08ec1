"""What one rank writes of a checkpoint's folder. All that needs a module is done before: any thread may write.

Whole tensors go into one file of rank 0, spans into a file of each rank, and shards through torch's distributed
checkpoints (DCP) in their Hugging Face format: safetensors with the place of each shard in its head. `files` reads all.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightrft_core.protocols import World
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from lightrft_engines.tensors_io import write_tensors
from lightrft_engines.training.files import Filed
from lightrft_engines.training.spans import Span, shared_out
from lightrft_engines.world import TorchWorld

WHOLE = "whole.safetensors"
PLACES = "DCP_SHARDING_INFO"  # where torch's reader looks for the places of shards


class AnotherRankFailed(Exception):
    """This rank cannot go on writing, for a reason that another one tells."""


@dataclass(frozen=True, slots=True)
class Share:
    """Tensors of this rank, to be written into `file`; without a name they are shards."""

    tensors: Mapping[str, Tensor]
    file: str | None

    def write(self, folder: Path, world: World) -> None:
        """All ranks call it together, each with its own share. Raises `OSError`.

        Of shards `AnotherRankFailed` is raised on the ranks that could write, where any could not.
        """
        if self.file is None:
            _write_shards(folder, self.tensors, world)
        elif self.tensors:
            folder.mkdir(parents=True, exist_ok=True)
            write_tensors(folder / self.file, self.tensors)


def share_of(tensors: Iterable[tuple[str, Filed]], world: World, *, copied: bool) -> Share:
    """This rank's share of tensors by name; all ranks call it together.

    With `copied` it is a copy on the CPU, made one tensor at a time; else it may be what the model computes with.
    """
    take: Callable[[Filed], Filed] = _copied if copied else _as_it_is
    kept = {name: take(item) for name, item in tensors if world.rank == 0 or not _is_whole(item)}
    spans = {name: item for name, item in kept.items() if isinstance(item, Span)}
    plain = {name: item for name, item in kept.items() if isinstance(item, Tensor)}
    if spans:
        return Share(_put_together(spans, world) | plain, f"share-{world.rank:05d}.safetensors")
    if any(isinstance(item, DTensor) for item in plain.values()):
        return Share(plain, None)
    return Share(plain, WHOLE)


def _is_whole(item: Filed) -> bool:
    return not isinstance(item, Span | DTensor)


def _as_it_is(item: Filed) -> Filed:
    return item


def _copied(item: Filed) -> Filed:
    """Of a span none: it is put together anew."""
    if isinstance(item, Span):
        return item
    if not isinstance(item, DTensor):
        return item.detach().to("cpu", copy=True)
    local = item.to_local().detach().clone()
    return DTensor.from_local(
        local, item.device_mesh, item.placements, run_check=False, shape=item.shape, stride=item.stride()
    )


def _put_together(spans: Mapping[str, Span], world: World) -> dict[str, Tensor]:
    """Each tensor whole on one rank, which is to write it."""
    owners = shared_out([span.shape.numel() for span in spans.values()], world.size)
    own = {}
    for (name, span), owner in zip(spans.items(), owners, strict=True):
        whole = span.whole(owner)
        if owner == world.rank:
            own[name] = whole.cpu()
    return own


def _write_shards(folder: Path, shards: Mapping[str, Tensor], world: World) -> None:
    try:
        writer = _ShardWriter(str(folder), save_distributed=True)
        dcp.save(dict(shards), storage_writer=writer, process_group=_group(world))
    except CheckpointException as problem:
        own = problem.failures.get(world.rank)
        raise AnotherRankFailed if own is None else own[0] from problem


def _group(world: World) -> dist.ProcessGroup | None:
    return world.group if isinstance(world, TorchWorld) else None


class _ShardWriter(HuggingFaceStorageWriter):  # type: ignore[misc]  # mypy does not follow torch
    """torch's own lays a file out in memory, twice, while no other thread can run; this one streams it to the disk."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """One file of this rank's shards, if it has any."""
        file = f"shard-{plan.storage_data['shard_index'] - 1:05d}.safetensors"
        tensors = {item.index.fqn: planner.resolve_data(item) for item in plan.items}
        places = {item.index.fqn: {"saved_offsets": list(item.tensor_data.chunk.offsets)} for item in plan.items}
        if tensors:
            write_tensors(self.path / file, tensors, {PLACES: json.dumps(places)})  # one entry: their order is chance
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(item.index, tensors[item.index.fqn].nbytes, file) for item in plan.items])
        return done
