"""The two ways to run a model while decoding: prompts shared through our plans, or transformers' own cache.

Sharing needs a model that runs our attention function. The other way takes any causal language model: left-padded
batches on a `DynamicCache`, no new rows until all are done. Both read a prompt once and compute logits of last
positions only.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lightrft_engines.attention import no_mask
from lightrft_engines.decode.cache import KeyValueCache, PromptSlot
from lightrft_engines.decode.plans import PrefillPlan, StepPlan
from lightrft_engines.decode.steps import Step, direct_step

TokenIds = tuple[int, ...]
JOINABLE = (DynamicLayer, DynamicSlidingWindowLayer)  # layers whose whole state is keys and values


class Reader(Protocol):
    """Runs the model over prompts and then over one new token a row."""

    is_open: bool
    """Rows may join while others run, and prompts stay readable until they are forgotten."""

    def read(self, prompts: Sequence[TokenIds]) -> tuple[list[PromptSlot], Tensor]:
        """Read prompts; a handle for each, and the logits [P, V] after its last token."""

    def join(self, prompts: Sequence[PromptSlot]) -> None:
        """Add rows that continue these prompts, after the present ones."""

    def step(self, tokens_R: Tensor) -> Tensor:
        """Feed every row its newest token; returns logits [R, V]."""

    def reorder(self, order: Sequence[int], order_R: Tensor) -> None:
        """Keep the rows named by `order`, in that order."""

    def forget(self, prompt: PromptSlot) -> None:
        """No row needs this prompt any more."""


class SharedReader:
    """Prompts packed into one row, then shared by their siblings; see `plans`."""

    is_open = True

    def __init__(
        self,
        module: nn.Module,
        max_rows: int,
        max_columns: int,
        max_prefill_tokens: int,
        *,
        run: Step | None = None,
    ) -> None:
        self.module, self.max_prefill_tokens = module, max_prefill_tokens
        self.run = direct_step(module) if run is None else run
        self.device = next(module.parameters()).device
        self.cache = KeyValueCache(max_rows, max_columns, self.device)
        self.plan = StepPlan(self.cache)
        self.mask = no_mask(self.device)
        self.positions_R1 = torch.zeros(0, 1, dtype=torch.long, device=self.device)

    def read(self, prompts: Sequence[TokenIds]) -> tuple[list[PromptSlot], Tensor]:
        """Equally long prompts adjacent, in passes of at most `max_prefill_tokens`."""
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        slots = self.cache.add_prompts([len(prompts[index]) for index in order])
        logits, start = [], 0
        while start < len(order):
            end, tokens = start + 1, len(prompts[order[start]])
            while end < len(order) and tokens + len(prompts[order[end]]) <= self.max_prefill_tokens:
                tokens, end = tokens + len(prompts[order[end]]), end + 1
            logits.append(self._prefill([prompts[index] for index in order[start:end]], slots[start:end]))
            start = end
        back = sorted(range(len(order)), key=order.__getitem__)
        return [slots[place] for place in back], torch.cat(logits)[torch.tensor(back, device=self.device)]

    def _prefill(self, prompts: Sequence[TokenIds], slots: Sequence[PromptSlot]) -> Tensor:
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        runs = [(len(list(same)), length) for length, same in groupby(prompts, key=len)]
        positions = torch.cat([torch.arange(len(prompt), device=self.device) for prompt in prompts])
        plan = PrefillPlan(self.cache, [slot.slot for slot in slots], runs)
        output = self.module(
            torch.tensor([token for prompt in prompts for token in prompt], device=self.device).unsqueeze(0),
            attention_mask=self.mask,
            position_ids=positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=lengths.cumsum(0) - 1,
            lightrft_plan=plan,
        )
        logits: Tensor = output.logits[0]
        return logits

    def join(self, prompts: Sequence[PromptSlot]) -> None:
        """A row's first own token stands right after its prompt."""
        self.cache.add_rows(prompts)
        joined = torch.tensor([[prompt.length] for prompt in prompts], device=self.device)
        self.positions_R1 = torch.cat((self.positions_R1, joined))

    def step(self, tokens_R: Tensor) -> Tensor:
        """One forward pass of all rows."""
        self.cache.open_column()
        logits = self.run(tokens_R.unsqueeze(-1), self.positions_R1, self.plan)
        self.cache.close_column()
        self.positions_R1 = self.positions_R1 + 1
        return logits

    def reorder(self, order: Sequence[int], order_R: Tensor) -> None:
        """Rows that are done leave at once."""
        self.cache.reorder_rows(order)
        self.positions_R1 = self.positions_R1.index_select(0, order_R)

    def forget(self, prompt: PromptSlot) -> None:
        """Its place is free for another."""
        self.cache.drop_prompt(prompt)


class PaddedReader:
    """Left-padded prompts on transformers' cache, copied to their siblings: for models without our attention."""

    is_open = False

    def __init__(self, module: nn.Module, pad: int, max_prefill_tokens: int) -> None:
        self.module, self.pad, self.max_prefill_tokens = module, pad, max_prefill_tokens
        self.device = next(module.parameters()).device
        self.cache = DynamicCache(config=module.config)
        self.mask_RS = torch.zeros(0, 0, dtype=torch.long, device=self.device)

    def read(self, prompts: Sequence[TokenIds]) -> tuple[list[PromptSlot], Tensor]:
        """Equally padded, in passes of at most `max_prefill_tokens`; they replace those read before."""
        longest = max(map(len, prompts))
        padded = [[self.pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        ids_PS = torch.tensor(padded, device=self.device)
        lengths_P1 = torch.tensor([[len(prompt)] for prompt in prompts], device=self.device)
        exists_PS = (torch.arange(longest, device=self.device) >= longest - lengths_P1).long()
        empty = DynamicCache(config=self.module.config)
        can_join = all(type(layer) in JOINABLE for layer in empty.layers)
        num = max(1, self.max_prefill_tokens // longest) if can_join else len(prompts)
        parts = [self._prefill(*part) for part in zip(ids_PS.split(num), exists_PS.split(num), strict=True)]
        self.cache, self.mask_RS = _joined([cache for cache, _ in parts]), exists_PS
        slots = [PromptSlot(slot, len(prompt)) for slot, prompt in enumerate(prompts)]
        return slots, torch.cat([logits_PV for _, logits_PV in parts])

    def _prefill(self, ids_PS: Tensor, exists_PS: Tensor) -> tuple[DynamicCache, Tensor]:
        cache = DynamicCache(config=self.module.config)
        return cache, self._forward(ids_PS, exists_PS, (exists_PS.cumsum(-1) - 1).clamp_min(0), cache)

    def join(self, prompts: Sequence[PromptSlot]) -> None:
        """Give every row its prompt's keys."""
        slots_R = torch.tensor([prompt.slot for prompt in prompts], device=self.device)
        self.reorder((), slots_R)

    def step(self, tokens_R: Tensor) -> Tensor:
        """One forward pass of all rows."""
        self.mask_RS = torch.cat((self.mask_RS, self.mask_RS.new_ones(len(tokens_R), 1)), -1)
        positions_R1 = self.mask_RS.sum(-1, keepdim=True) - 1
        return self._forward(tokens_R.unsqueeze(-1), self.mask_RS, positions_R1, self.cache)

    def reorder(self, order: Sequence[int], order_R: Tensor) -> None:
        """Rows that are done leave at once."""
        self.cache.reorder_cache(order_R)
        self.mask_RS = self.mask_RS.index_select(0, order_R)

    def forget(self, prompt: PromptSlot) -> None:
        """Prompts live in their rows here."""

    def _forward(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        output = self.module(
            tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits


def _joined(caches: Sequence[DynamicCache]) -> DynamicCache:
    """Rows of equally long caches below each other."""
    first, *others = caches
    if others:
        for layers in zip(*(cache.layers for cache in caches), strict=True):
            layers[0].keys = torch.cat([layer.keys for layer in layers])
            layers[0].values = torch.cat([layer.values for layer in layers])
    return first
