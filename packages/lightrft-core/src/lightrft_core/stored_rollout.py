"""A rollout as the store keeps it: one row, with token ids and log-probabilities as compressed arrays."""

import json
import sqlite3
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, overload

from lightrft_core.data import Rollout

Phase = Literal["train", "eval"]


@dataclass(frozen=True, slots=True)
class StoredRollout:
    """One rollout as it was trained on. `media` names files, or `sha256:...` of bytes kept in the store."""

    id: int
    step: int
    phase: Phase
    prompt_id: str
    messages: tuple[Mapping[str, str], ...]
    media: tuple[Mapping[str, str], ...]
    reference: str | None
    label: str | None
    prompt_token_ids: tuple[int, ...]
    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    loss_mask: tuple[bool, ...]
    reward: float | None
    shaped_reward: float | None
    scores: Mapping[str, float]
    unscored: str | None
    finish_reason: str
    policy_version: int
    seed: int

    @property
    def prompt_text(self) -> str:
        """The last message, as a person reads it."""
        return self.messages[-1].get("content", "") if self.messages else ""


def to_row(step: int, phase: Phase, prompt: int, rollout: Rollout) -> tuple[object, ...]:
    """The values of the table's columns, `id` left out."""
    mask = None if all(rollout.loss_mask) else packed("b", [int(value) for value in rollout.loss_mask])
    return (
        step,
        phase,
        prompt,
        rollout.index,
        storable(rollout.text),
        packed("i", rollout.token_ids),
        packed("f", rollout.engine_logprobs),
        mask,
        len(rollout.token_ids),
        rollout.reward,
        rollout.shaped_reward,
        json.dumps(rollout.scores),
        storable(rollout.unscored),
        rollout.finish_reason,
        rollout.policy_version,
        rollout.seed,
    )


def from_row(row: sqlite3.Row) -> StoredRollout:
    """Back from the columns that `RolloutStore.find` selects."""
    token_ids = tuple(int(value) for value in unpacked("i", row["token_ids"]))
    mask = (True,) * len(token_ids) if row["mask"] is None else tuple(bool(x) for x in unpacked("b", row["mask"]))
    return StoredRollout(
        id=row["id"],
        step=row["step"],
        phase=row["phase"],
        prompt_id=row["prompt_id"],
        messages=tuple(json.loads(row["messages"])),
        media=tuple(json.loads(row["media"])),
        reference=row["reference"],
        label=row["label"],
        prompt_token_ids=tuple(int(value) for value in unpacked("i", row["prompt_token_ids"])),
        index=row["sibling"],
        text=row["text"],
        token_ids=token_ids,
        logprobs=tuple(unpacked("f", row["logprobs"])),
        loss_mask=mask,
        reward=row["reward"],
        shaped_reward=row["shaped_reward"],
        scores=json.loads(row["scores"]),
        unscored=row["unscored"],
        finish_reason=row["finish_reason"],
        policy_version=row["policy_version"],
        seed=row["seed"],
    )


def packed(code: Literal["i", "f", "b"], values: Sequence[float]) -> bytes:
    """A compressed little-endian array of 32-bit integers (`i`), 32-bit floats (`f`) or bytes (`b`)."""
    return zlib.compress(struct.pack(f"<{len(values)}{code}", *values), 1)


def unpacked(code: Literal["i", "f", "b"], blob: bytes) -> tuple[float, ...]:
    """Its numbers."""
    data = zlib.decompress(blob)
    return struct.unpack(f"<{len(data) // struct.calcsize(code)}{code}", data)


@overload
def storable(text: str) -> str: ...
@overload
def storable(text: None) -> None: ...
def storable(text: str | None) -> str | None:
    """Text that SQLite takes: half characters, which a tokenizer may give, are spelled out."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode("utf-8")
