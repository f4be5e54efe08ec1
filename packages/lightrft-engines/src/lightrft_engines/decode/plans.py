"""How attention is computed while decoding: prompts packed side by side, then one new token a row.

A row's keys lie in two places: its prompt's, shared by all siblings, and its own. The two softmaxes are merged by their
log-sum-exps, so a prompt's keys are read once for all its siblings and never copied. Query heads that share a key head
are treated as further queries: keys are not repeated for grouped-query attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightrft_engines.decode.cache import KeyValueCache, LayerView


def attend_with_lse(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scaling: float | None
) -> tuple[Tensor, Tensor]:
    """[B, heads, Q, D] queries over as many heads of keys -> output [B, heads, Q, D] and log-sum-exp [B, heads, Q].

    `bias` [B, 1, 1, S] is added to the scores; every query must see a key.
    """
    if query.is_cpu and key.shape[-1] == value.shape[-1]:
        output, lse = torch._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=bias, scale=scaling
        )
        return output, lse
    scores = torch.matmul(query, key.transpose(-1, -2)).float() * (scaling or key.shape[-1] ** -0.5)
    scores = scores if bias is None else scores + bias
    lse = scores.logsumexp(-1, keepdim=True)
    return torch.matmul((scores - lse).exp().to(value.dtype), value), lse.squeeze(-1)


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """Prompts packed into one row, equally long ones adjacent: each attends to itself alone, and its keys are kept."""

    cache: KeyValueCache
    slots: Sequence[int]
    runs: Sequence[tuple[int, int]]
    """(prompts, tokens of each) in packed order."""

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """[1, heads, T, D] queries over [1, kv_heads, T, D] keys and values -> [1, T, heads, D]."""
        outputs, token, prompt = [], 0, 0
        for num, length in self.runs:
            rows = [_unpack(part[0, :, token : token + num * length], num) for part in (query, key, value)]
            self.cache.keep_prompts(module.layer_idx, self.slots[prompt : prompt + num], rows[1], rows[2])
            outputs.append(_causal(rows[0], rows[1], rows[2], scaling).transpose(1, 2).flatten(0, 1))
            token, prompt = token + num * length, prompt + num
        return torch.cat(outputs).unsqueeze(0)


def _unpack(packed: Tensor, num: int) -> Tensor:
    """[heads, num * L, D] -> [num, heads, L, D]"""
    return packed.unflatten(1, (num, -1)).transpose(0, 1)


def _causal(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    return nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)


def merged(own: Tensor, own_lse: Tensor, shared: Tensor, shared_lse: Tensor) -> Tensor:
    """Attention over both places, from [R, kv_heads, Q, D] over each and its log-sum-exp -> [R, 1, heads, D]."""
    both = torch.lerp(own, shared, (shared_lse - own_lse).sigmoid_().unsqueeze(-1).to(own.dtype))
    return both.reshape(len(own), 1, own.shape[1] * own.shape[2], -1)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One new token per row, over its prompt's keys and its own."""

    cache: KeyValueCache

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """[R, heads, 1, D] queries over [R, kv_heads, 1, D] new keys and values -> [R, 1, heads, D]."""
        cache = self.cache
        num_rows, num_heads, _, width = query.shape
        kv_heads = key.shape[1]
        view = cache.step_view(module.layer_idx, key, value)
        by_row = query.reshape(num_rows, kv_heads, num_heads // kv_heads, width)
        own, own_lse = attend_with_lse(by_row, view.own_keys, view.own_values, cache.own_bias, scaling)
        shared, shared_lse = self._attend_to_prompts(by_row, view, scaling)
        return merged(own, own_lse, shared, shared_lse)

    def _attend_to_prompts(self, by_row: Tensor, view: LayerView, scaling: float | None) -> tuple[Tensor, Tensor]:
        """[R, kv_heads, Q, D] queries, siblings' side by side, each prompt's keys read once."""
        num_rows, kv_heads, repeats, width = by_row.shape
        bias, index = self.cache.prompt_bias, self.cache.sibling_index(kv_heads)
        if index is None:
            return attend_with_lse(by_row, view.keys, view.values, bias, scaling)
        gather, scatter, num_places = index
        by_prompt = by_row.reshape(num_rows * kv_heads, repeats * width).index_select(0, gather)
        by_prompt = by_prompt.view(-1, kv_heads, num_places * repeats, width)
        shared, lse = attend_with_lse(by_prompt, view.keys, view.values, bias, scaling)
        shared = shared.reshape(-1, repeats * shared.shape[-1]).index_select(0, scatter)
        lse = lse.reshape(-1, repeats).index_select(0, scatter)
        return shared.view(num_rows, kv_heads, repeats, -1), lse.view(num_rows, kv_heads, repeats)
