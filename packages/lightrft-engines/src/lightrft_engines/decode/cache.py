"""Keys and values of what was read: a prompt's once for all its siblings, a row's own written beside it.

Own keys of all rows share one column per step, so that a step writes one slice: a row that joined later starts at a
later column, and what lies before it is masked (and zero, because a mask does not stop NaN). Buffers are allocated
ahead and grow by doubling. A row or prompt that is done is replaced by the last one, so leaving costs one row's copy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

FIRST_COLUMNS = 64


@dataclass(eq=False, slots=True)
class PromptSlot:
    """Where a prompt's keys lie; the cache moves it."""

    slot: int
    length: int


class LayerView(NamedTuple):
    """What one layer attends to in a step: prompts' [P, kv_heads, L, D] and rows' own [R, kv_heads, S, D]."""

    keys: Tensor
    values: Tensor
    own_keys: Tensor
    own_values: Tensor


class SiblingIndex(NamedTuple):
    """Which (row, kv_head) stands at [prompt, kv_head, place], the way back, and the number of places.

    Prompts with fewer rows than others repeat some row; the way back leaves those out.
    """

    gather: Tensor
    scatter: Tensor
    num_places: int


@dataclass(slots=True)
class _Layer:
    keys: Tensor
    values: Tensor
    own_keys: Tensor
    own_values: Tensor

    def grow(self, prompts: tuple[int, int], rows: tuple[int, int]) -> None:
        self.keys, self.values = _grown(self.keys, *prompts), _grown(self.values, *prompts)
        self.own_keys, self.own_values = _grown(self.own_keys, *rows), _grown(self.own_values, *rows)


class KeyValueCache:
    """Prompts [slots] and rows, each row naming its prompt. `max_rows` and `max_columns` bound what is allocated."""

    def __init__(self, max_rows: int, max_columns: int, device: torch.device) -> None:
        self.max_rows, self.max_columns, self.device = max_rows, max_columns, device
        self.prompts: list[PromptSlot] = []
        self.rows: list[PromptSlot] = []
        self.starts: list[int] = []
        self.layers: dict[int, _Layer] = {}
        self.column = self.first = 0
        self.num_columns = min(FIRST_COLUMNS, max_columns)
        self.prompt_capacity = (0, 0)
        self.prompt_bias: Tensor | None = None
        self.own_bias: Tensor | None = None
        self._longest = 0
        self._all_bias: Tensor | None = None
        self._index: dict[int, SiblingIndex | None] = {}
        self._views: dict[int, LayerView] = {}
        self.num_changes = self.num_growths = 0

    def add_prompts(self, lengths: Sequence[int]) -> list[PromptSlot]:
        """Make room for prompts of these many tokens; their keys come through `keep_prompts`."""
        added = [PromptSlot(len(self.prompts) + number, length) for number, length in enumerate(lengths)]
        self.prompts += added
        self._reserve(len(self.prompts), max(lengths))
        self._prompts_changed()
        return added

    def keep_prompts(self, layer: int, slots: Sequence[int], keys: Tensor, values: Tensor) -> None:
        """Store [n, kv_heads, L, D] keys and values of equally long prompts at consecutive slots."""
        if layer not in self.layers:
            self.layers[layer] = self._new_layer(keys, values)
        held, length = self.layers[layer], keys.shape[2]
        for buffer, read in ((held.keys, keys), (held.values, values)):
            places = buffer[slots[0] : slots[0] + len(slots)]
            places[:, :, :length] = read
            places[:, :, length:] = 0

    def drop_prompt(self, prompt: PromptSlot) -> None:
        """Forget a prompt that no row will need."""
        last = self.prompts.pop()
        if last is not prompt:
            for layer in self.layers.values():
                for buffer in (layer.keys, layer.values):
                    buffer[prompt.slot] = buffer[last.slot]
            self.prompts[prompt.slot] = last
            last.slot = prompt.slot
        self._prompts_changed()

    def add_rows(self, prompts: Sequence[PromptSlot]) -> None:
        """Rows that continue these prompts, after the present ones."""
        for layer in self.layers.values():
            for buffer in (layer.own_keys, layer.own_values):
                buffer[len(self.rows) : len(self.rows) + len(prompts), :, self.first : self.column] = 0
        self.rows += prompts
        self.starts += [self.column] * len(prompts)
        self._rows_changed()

    def reorder_rows(self, order: Sequence[int]) -> None:
        """Keep the rows named by `order`; those whose place does not change are not copied."""
        moved = [(to, origin) for to, origin in enumerate(order) if to != origin]
        if moved:
            to, origin = (torch.tensor(side, device=self.device) for side in zip(*moved, strict=True))
            used = slice(self.first, self.column)
            for layer in self.layers.values():
                for buffer in (layer.own_keys, layer.own_values):
                    buffer[to, :, used] = buffer[origin, :, used]
        self.rows = [self.rows[row] for row in order]
        self.starts = [self.starts[row] for row in order]
        self._rows_changed()

    def open_column(self) -> None:
        """Make the next step's column ready."""
        if self.column == self.num_columns:
            self._make_columns()
        if self._all_bias is not None:
            self.own_bias = self._all_bias[..., self.first : self.column + 1]

    def close_column(self) -> None:
        """The step is done: what it wrote is part of the past."""
        self.column += 1

    def step_view(self, index: int, key: Tensor, value: Tensor) -> LayerView:
        """Write this step's [R, kv_heads, 1, D] key and value; returns all that the layer attends to."""
        if index not in self._views:
            self._views[index] = self._make_view(self.layers[index])
        view, num = self._views[index], self.column + 1 - self.first
        view.own_keys.narrow(2, self.column, 1).copy_(key)
        view.own_values.narrow(2, self.column, 1).copy_(value)
        own_keys, own_values = view.own_keys.narrow(2, self.first, num), view.own_values.narrow(2, self.first, num)
        return LayerView(view.keys, view.values, own_keys, own_values)

    def _make_view(self, layer: _Layer) -> LayerView:
        """All own columns, written or not; valid until a row or a prompt comes or goes."""
        num_rows, num_prompts = len(self.rows), len(self.prompts)
        return LayerView(
            layer.keys[:num_prompts, :, : self._longest],
            layer.values[:num_prompts, :, : self._longest],
            layer.own_keys[:num_rows],
            layer.own_values[:num_rows],
        )

    def sibling_index(self, kv_heads: int) -> SiblingIndex | None:
        """Where siblings stand beside each other; None where each row has a prompt to itself, in the rows' order."""
        if kv_heads not in self._index:
            alone = len(self.rows) == len(self.prompts) and all(one.slot == row for row, one in enumerate(self.rows))
            self._index[kv_heads] = None if alone else self._make_index(kv_heads)
        return self._index[kv_heads]

    def _make_index(self, kv_heads: int) -> SiblingIndex:
        members: list[list[int]] = [[] for _ in self.prompts]
        places = []
        for row, prompt in enumerate(self.rows):
            places.append((prompt.slot, len(members[prompt.slot])))
            members[prompt.slot].append(row)
        num_places = max(map(len, members))
        padded = [rows + [0] * (num_places - len(rows)) for rows in members]
        heads = torch.arange(kv_heads, device=self.device)
        gather = torch.tensor(padded, device=self.device).unsqueeze(1) * kv_heads + heads.unsqueeze(-1)
        slot_R1, place_R1 = torch.tensor(places, device=self.device).split(1, -1)
        scatter = (slot_R1 * kv_heads + heads) * num_places + place_R1
        return SiblingIndex(gather.flatten(), scatter.flatten(), num_places)

    def clean(self) -> None:
        """Zero the own columns that no row has written, because a mask does not stop NaN."""
        for layer in self.layers.values():
            for buffer in (layer.own_keys, layer.own_values):
                buffer[:, :, : self.first] = 0
                buffer[:, :, self.column :] = 0
                buffer[len(self.rows) :] = 0

    def _prompts_changed(self) -> None:
        self.num_changes += 1
        self._index, self._views = {}, {}
        lengths = [prompt.length for prompt in self.prompts]
        self._longest = max(lengths, default=0)
        self.prompt_bias = None
        if lengths and min(lengths) < self._longest:
            columns = torch.arange(self._longest, device=self.device)
            self.prompt_bias = self.hide(columns >= torch.tensor(lengths, device=self.device).unsqueeze(-1))

    def _rows_changed(self) -> None:
        self.num_changes += 1
        self._index, self._views = {}, {}
        self._all_bias = self.own_bias = None
        if not self.rows:
            self.column = self.first = 0
            return
        self.first = min(self.starts)
        if max(self.starts) > self.first:
            columns = torch.arange(self.num_columns, device=self.device)
            self._all_bias = self.hide(columns < torch.tensor(self.starts, device=self.device).unsqueeze(-1))

    def hide(self, hidden: Tensor) -> Tensor:
        """[N, S] bool -> an additive bias [N, 1, 1, S]."""
        bias = torch.zeros(hidden.shape, dtype=self._dtype(), device=self.device)
        return bias.masked_fill_(hidden, -math.inf)[:, None, None]

    def _dtype(self) -> torch.dtype:
        return next((layer.keys.dtype for layer in self.layers.values()), torch.float32)

    def _make_columns(self) -> None:
        """Free the columns before the first row's start where that helps, else allocate more."""
        if self.first >= self.num_columns // 2:
            used = slice(self.first, self.column)
            for layer in self.layers.values():
                for buffer in (layer.own_keys, layer.own_values):
                    buffer[:, :, : self.column - self.first] = buffer[:, :, used].clone()
            self.starts = [start - self.first for start in self.starts]
            self.column -= self.first
        else:
            self.num_columns *= 2
            self._grow()
        self._rows_changed()

    def _reserve(self, num_prompts: int, length: int) -> None:
        slots, longest = self.prompt_capacity
        if num_prompts > slots or length > longest:
            self.prompt_capacity = (max(num_prompts, min(slots * 2, self.max_rows)), max(length, longest))
            self._grow()

    def _grow(self) -> None:
        self.num_growths += 1
        self._views = {}
        for layer in self.layers.values():
            layer.grow(self.prompt_capacity, (self.max_rows, self.num_columns))

    def _new_layer(self, keys: Tensor, values: Tensor) -> _Layer:
        def buffer(like: Tensor, rows: int, columns: int) -> Tensor:
            return like.new_empty(rows, like.shape[1], columns, like.shape[-1])

        prompts, rows = self.prompt_capacity, (self.max_rows, self.num_columns)
        return _Layer(buffer(keys, *prompts), buffer(values, *prompts), buffer(keys, *rows), buffer(values, *rows))


def _grown(buffer: Tensor, rows: int, columns: int) -> Tensor:
    if (buffer.shape[0], buffer.shape[2]) == (rows, columns):
        return buffer
    larger = buffer.new_empty(rows, buffer.shape[1], columns, buffer.shape[3])
    larger[: len(buffer), :, : buffer.shape[2]] = buffer
    larger[: len(buffer), :, buffer.shape[2] :] = 0
    return larger
