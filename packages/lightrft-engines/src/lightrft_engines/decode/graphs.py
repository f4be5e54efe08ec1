"""A decode step as a recorded CUDA graph: one launch instead of some hundred.

A recording knows fixed addresses and shapes. So rows are padded to a power of two, all own columns and prompt places
that are allocated are attended to under a mask, and what changes between steps (column, mask, who has which prompt) is
written into buffers that the recording reads. It is made anew where the cache grows, where half of the rows are gone,
or where more rows join than fit. Without CUDA the same static step runs unrecorded.
"""

import math
from collections import Counter

import torch
from torch import Tensor, nn

from lightrft_engines.attention import AttentionPlan
from lightrft_engines.decode.cache import KeyValueCache
from lightrft_engines.decode.plans import StepPlan, attend_with_lse, merged
from lightrft_engines.decode.steps import PlainStep

WARM_UPS = 2  # before recording: libraries allocate at their first calls


class GraphStep:
    """A `Step` for one reader; its recording ends with it, so weights may move between calls of `generate`."""

    def __init__(self, module: nn.Module) -> None:
        self._run = PlainStep(module)
        self._recording: _Recording | None = None

    def __call__(self, tokens_R1: Tensor, positions_R1: Tensor, plan: AttentionPlan) -> Tensor:
        """Logits [R, V], valid until the next call."""
        if not isinstance(plan, StepPlan):
            raise TypeError(f"a recorded step needs a StepPlan, not {type(plan).__name__}")
        num_rows = len(tokens_R1)
        if self._recording is None or not self._recording.plan.fits(plan.cache):
            self._recording = None  # its memory is free for the next
            self._recording = _Recording(self._run, StaticPlan(plan.cache))
        return self._recording.replay(tokens_R1, positions_R1)[:num_rows]


class _Recording:
    """The step with its static inputs and output."""

    def __init__(self, run: PlainStep, plan: "StaticPlan") -> None:
        self._run, self.plan = run, plan
        self._tokens_R1 = torch.zeros(plan.num_rows, 1, dtype=torch.long, device=plan.cache.device)
        self._positions_R1 = torch.zeros_like(self._tokens_R1)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits_RV: Tensor | None = None

    def replay(self, tokens_R1: Tensor, positions_R1: Tensor) -> Tensor:
        """Logits of all rows, padding included."""
        self._tokens_R1[: len(tokens_R1)] = tokens_R1
        self._positions_R1[: len(positions_R1)] = positions_R1
        self.plan.open()
        if self.plan.cache.device.type != "cuda":
            return self._compute()
        if self._graph is None:
            self._record()
        if self._graph is None or self._logits_RV is None:
            raise RuntimeError("the step was not recorded")
        self._graph.replay()
        return self._logits_RV

    def _compute(self) -> Tensor:
        return self._run(self._tokens_R1, self._positions_R1, self.plan)

    def _record(self) -> None:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):  # they write the column that the step writes, with the same values
                self._compute()
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits_RV = self._compute()


class StaticPlan:
    """A step's attention at fixed shapes. `open` brings its buffers up to date with the cache."""

    def __init__(self, cache: KeyValueCache) -> None:
        self.cache, self._num_growths = cache, cache.num_growths
        self.num_rows = min(1 << (len(cache.rows) - 1).bit_length(), cache.max_rows)
        self._num_places = _most_siblings(cache)
        num_prompts, longest = cache.prompt_capacity

        def places(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.long, device=cache.device)

        self._column_1, self._gather_N = places(1), places(num_prompts * self._num_places)
        self._scatter_R = places(self.num_rows)
        self._own_bias = cache.hide(places(self.num_rows, cache.num_columns).bool())
        self._prompt_bias = cache.hide(places(num_prompts, longest).bool())
        self._num_changes = -1
        cache.clean()

    def fits(self, cache: KeyValueCache) -> bool:
        """Whether the shapes are still right for the cache."""
        num, is_same = len(cache.rows), (cache, cache.num_growths) == (self.cache, self._num_growths)
        return is_same and self.num_rows // 2 < num <= self.num_rows and _most_siblings(cache) <= self._num_places

    def open(self) -> None:
        """Before each step."""
        if self._num_changes != self.cache.num_changes:
            self._num_changes = self.cache.num_changes
            self._place_siblings()
            self._hide()
        self._column_1.fill_(self.cache.column)
        self._own_bias.select(-1, self.cache.column).fill_(0)

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """[R, heads, 1, D] queries over [R, kv_heads, 1, D] new keys and values -> [R, 1, heads, D]."""
        layer, (num_rows, num_heads, _, width), kv_heads = (
            self.cache.layers[module.layer_idx],
            query.shape,
            key.shape[1],
        )
        own_keys, own_values = layer.own_keys[:num_rows], layer.own_values[:num_rows]
        own_keys.index_copy_(2, self._column_1, key)
        own_values.index_copy_(2, self._column_1, value)
        by_row = query.reshape(num_rows, kv_heads, num_heads // kv_heads, width)
        own, own_lse = attend_with_lse(by_row, own_keys, own_values, self._own_bias, scaling)
        by_prompt = _beside(by_row.flatten(2).index_select(0, self._gather_N), self._num_places)
        by_prompt = by_prompt.unflatten(-1, (-1, width)).flatten(2, 3)
        shared, lse = attend_with_lse(by_prompt, layer.keys, layer.values, self._prompt_bias, scaling)
        shared = _apart(shared, self._num_places).index_select(0, self._scatter_R).view(own.shape)
        lse = _apart(lse.unsqueeze(-1), self._num_places).index_select(0, self._scatter_R).view(own_lse.shape)
        return merged(own, own_lse, shared, lse)

    def _place_siblings(self) -> None:
        """Row [prompt, place], and where each row stands; places without a row have the first one's query."""
        gather = [0] * len(self._gather_N)
        scatter, seen = [0] * self.num_rows, Counter[int]()
        for row, prompt in enumerate(self.cache.rows):
            place = prompt.slot * self._num_places + seen[prompt.slot]
            gather[place], scatter[row] = row, place
            seen[prompt.slot] += 1
        self._gather_N.copy_(torch.tensor(gather))
        self._scatter_R.copy_(torch.tensor(scatter))

    def _hide(self) -> None:
        """Own columns before a row's start and from now on, and what lies behind a prompt's end.

        Rows and prompts that only pad see one key, since softmax over none is not a number.
        """
        cache, device = self.cache, self.cache.device
        starts_R1 = torch.tensor([[start] for start in cache.starts], device=device)
        columns, places = (
            torch.arange(cache.num_columns, device=device),
            torch.arange(cache.prompt_capacity[1], device=device),
        )
        lengths_P1 = torch.tensor([[prompt.length] for prompt in cache.prompts], device=device)
        self._own_bias.fill_(-math.inf)
        self._own_bias[: len(cache.rows)] = cache.hide((columns < starts_R1) | (columns >= cache.column))
        self._prompt_bias.fill_(0)
        self._prompt_bias[: len(cache.prompts)] = cache.hide(places >= lengths_P1)


def _most_siblings(cache: KeyValueCache) -> int:
    return max(Counter(prompt.slot for prompt in cache.rows).values())


def _beside(rows: Tensor, num_places: int) -> Tensor:
    """[P * places, kv_heads, N] -> [P, kv_heads, places, N]"""
    return rows.unflatten(0, (-1, num_places)).transpose(1, 2)


def _apart(prompts: Tensor, num_places: int) -> Tensor:
    """[P, kv_heads, places * Q, D] -> [P * places, kv_heads, Q * D]"""
    return prompts.unflatten(2, (num_places, -1)).flatten(3).transpose(1, 2).flatten(0, 1)
