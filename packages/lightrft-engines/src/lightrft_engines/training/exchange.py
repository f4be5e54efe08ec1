"""Which rank computes which rows: lengths differ, so rows move to where work is short, and their values come home.

Only a speed-up where every rank works alone. Ranks that share each sequence must hold the same rows, and get them here.
Groups of siblings stay together; a rank's rows arrive as safetensors bytes with a JSON head, so nothing is pickled.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from lightrft_core.data import Batch
from lightrft_core.protocols import World
from torch import Tensor

from lightrft_engines.training.balance import partition
from lightrft_engines.training.microbatch import packed_tokens, sibling_rows

HEAD_BYTES = 8


@dataclass(frozen=True, slots=True)
class Share:
    """The rows that this rank computes. `is_lead` is False where another rank counts the same rows."""

    batch: Batch
    is_lead: bool
    _way_home: "_Stay | _Route"

    def home(self, values_BT: Tensor) -> Tensor:
        """Values of these rows [B, T] as values of the batch that `share` was given, 0 where a row had no part."""
        return self._way_home.back(values_BT)


class Exchange:
    """Deals rows to `world.size / width` bins; the `width` ranks of a bin hold the same rows."""

    def __init__(self, world: World, device: torch.device, *, width: int = 1, balance: bool = True) -> None:
        self._world, self._device, self._width = world, device, width
        self._stays = world.size == 1 or (width == 1 and not balance)

    def share(self, batch: Batch, rows: Sequence[int]) -> Share:
        """This rank's share of the named rows of all ranks. All ranks call it together."""
        if self._stays:
            return Share(batch.rows(rows), True, _Stay(batch.mask_BT.shape, tuple(rows)))
        groups = sibling_rows(batch, rows)
        sent = self._deal(batch, groups)
        home = tuple(tuple(row for group in groups for row in group) for groups in sent)
        packed = [_pack(batch.rows(rows)) for rows in home]
        payloads = [packed[rank // self._width] for rank in range(self._world.size)]
        received = [_unpack(payload) for payload in _all_to_all(payloads, self._device)]
        sizes = tuple((len(part), part.mask_BT.shape[1]) for part in received)
        is_lead = self._world.rank % self._width == 0
        route = _Route(batch.mask_BT.shape, home, sizes, self._width, is_lead, self._device)
        return Share(_joined(received), is_lead, route)

    def _deal(self, batch: Batch, groups: list[list[int]]) -> list[list[list[int]]]:
        """For each bin the groups of this rank that go there; every rank finds the same plan."""
        weights = self._world.gather([packed_tokens(batch, members) for members in groups])
        first = sum(len(part) for part in weights[: self._world.rank])
        bins = partition([weight for part in weights for weight in part], self._world.size // self._width)
        own = range(first, first + len(groups))
        return [[groups[item - first] for item in items if item in own] for items in bins]


@dataclass(frozen=True, slots=True)
class _Stay:
    shape: tuple[int, int]
    rows: tuple[int, ...]

    def back(self, values_BT: Tensor) -> Tensor:
        home_BT = values_BT.new_zeros(self.shape)
        if self.rows:
            home_BT[list(self.rows)] = values_BT
        return home_BT


@dataclass(frozen=True, slots=True)
class _Route:
    """`home` names this rank's rows in each bin, `sizes` the rows and their width that came from each rank."""

    shape: tuple[int, int]
    home: tuple[tuple[int, ...], ...]
    sizes: tuple[tuple[int, int], ...]
    width: int
    is_lead: bool
    device: torch.device

    def back(self, values_BT: Tensor) -> Tensor:
        parts = values_BT.split([num for num, _ in self.sizes])
        sent = [part[:, :steps].cpu().float() for part, (_, steps) in zip(parts, self.sizes, strict=True)]
        payloads = [safetensors.torch.save({"values": part.contiguous()}) if self.is_lead else b"" for part in sent]
        received = _all_to_all(payloads, self.device)
        home_BT = torch.zeros(self.shape)
        for rows, payload in zip(self.home, received[:: self.width], strict=True):
            if rows:
                home_BT[list(rows)] = safetensors.torch.load(payload)["values"]
        return home_BT


def _all_to_all(payloads: Sequence[bytes], device: torch.device) -> list[bytes]:
    """Each rank's bytes for this one, in rank order."""
    sizes = torch.tensor([len(payload) for payload in payloads], device=device)
    coming = torch.empty_like(sizes)
    dist.all_to_all_single(coming, sizes)
    joined = bytearray(b"".join(payloads) or b"\0")  # torch reads no empty buffer
    outgoing = torch.frombuffer(joined, dtype=torch.uint8)[: int(sizes.sum())].to(device)
    incoming = outgoing.new_empty(int(coming.sum()))
    dist.all_to_all_single(incoming, outgoing, coming.tolist(), sizes.tolist())
    return [bytes(part.numpy()) for part in incoming.cpu().split(coming.tolist())]


def _pack(batch: Batch) -> bytes:
    tensors = {name: value.contiguous() for name, value in _tensors(batch).items()}
    media: list[dict[str, Any]] = []  # Any: what the model adapter keeps beside tensors, as JSON
    for row, item in enumerate(batch.media):
        own = {key: value for key, value in item.items() if isinstance(value, Tensor)}
        media.append({key: value for key, value in item.items() if key not in own})
        tensors |= {f"media.{row}.{key}": value.contiguous() for key, value in own.items()}
    head = {
        "prompt_ids": batch.prompt_ids,
        "prompt_token_ids": batch.prompt_token_ids,
        "temperature": batch.temperature,
        "media": media,
    }
    text, body = json.dumps(head).encode(), bytes(safetensors.torch.save(tensors))
    return len(text).to_bytes(HEAD_BYTES, "big") + text + body


def _unpack(payload: bytes) -> Batch:
    length = int.from_bytes(payload[:HEAD_BYTES], "big")
    head = json.loads(payload[HEAD_BYTES : HEAD_BYTES + length])
    tensors = safetensors.torch.load(payload[HEAD_BYTES + length :])
    media: list[dict[str, Any]] = head["media"]  # Any: as in `_pack`
    for name in [name for name in tensors if name.startswith("media.")]:
        _, row, key = name.split(".", 2)
        media[int(row)][key] = tensors.pop(name)
    return Batch(
        prompt_ids=tuple(head["prompt_ids"]),
        prompt_token_ids=tuple(tuple(ids) for ids in head["prompt_token_ids"]),
        temperature=head["temperature"],
        media=tuple(media),
        **tensors,
    )


def _joined(batches: Sequence[Batch]) -> Batch:
    """One batch of all rows; groups of different ranks keep different numbers."""
    width = max(batch.mask_BT.shape[1] for batch in batches)
    names = {name for batch in batches for name in _tensors(batch)}
    columns: dict[str, list[Tensor]] = {name: [] for name in names}
    first_group = 0
    for batch in batches:
        for name in names:
            value = _tensors(batch)[name]
            columns[name].append(_widened(value, width) if name.endswith("_BT") else value)
        columns["group_B"][-1] = columns["group_B"][-1] + first_group
        first_group += int(batch.group_B.max()) + 1 if len(batch) else 0
    joined: Mapping[str, Tensor] = {name: torch.cat(parts) for name, parts in columns.items()}
    return Batch(
        prompt_ids=tuple(name for batch in batches for name in batch.prompt_ids),
        prompt_token_ids=tuple(ids for batch in batches for ids in batch.prompt_token_ids),
        temperature=batches[0].temperature,
        media=tuple(item for batch in batches for item in batch.media),
        **joined,
    )


def _widened(values_BT: Tensor, width: int) -> Tensor:
    missing = width - values_BT.shape[1]
    return torch.nn.functional.pad(values_BT, (0, missing)) if missing else values_BT


def _tensors(batch: Batch) -> dict[str, Tensor]:
    found = {item.name: getattr(batch, item.name) for item in fields(batch)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}
