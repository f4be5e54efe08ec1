"""Two ways to lay rollouts out for one forward pass, and where each completion token's hidden state ends up.

Padded: a row is prompt and completion, right-padded, with a 2-D mask: what any model takes.
Packed: one row of N tokens without padding, and siblings share their prompt:

    prompt 1 | completion 1 | completion 2 | ... | prompt 2 | completion 1 | ...

Position ids restart at each completion where its prompt ended. Prompt tokens attend within the prompt; a completion
token attends to its prompt and, causally, to its own completion. Gradients flow through the shared prompt exactly: it
is the same computation with equal parts done once. The last token of a completion predicts nothing and is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from lightrft_core.data import Batch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lightrft_engines.attention import AttentionPlan


@dataclass(frozen=True, slots=True)
class Cluster:
    """A prompt's length, and the fed tokens of each completion that follows it in the packed row (zeros left out)."""

    prompt: int
    completions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SharedPrompts:
    """The attention plan of a packed row; see `attention.AttentionPlan`."""

    clusters: tuple[Cluster, ...]

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """[1, heads, N, D] over [1, kv_heads, N, D] -> [1, N, heads, D]."""
        sizes = [size for cluster in self.clusters for size in (cluster.prompt, *cluster.completions)]
        pieces = zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
        outputs = []
        for cluster in self.clusters:
            queries, keys, values = next(pieces)
            outputs.append(_sdpa(queries, keys, values, None, scaling))
            mask = _lower_right(max(cluster.completions, default=0), cluster.prompt, query.device)
            for size in cluster.completions:
                own_queries, own_keys, own_values = next(pieces)
                seen_keys, seen_values = torch.cat([keys, own_keys], 2), torch.cat([values, own_values], 2)
                outputs.append(
                    _sdpa(own_queries, seen_keys, seen_values, mask[:size, : cluster.prompt + size], scaling)
                )
        return torch.cat([output.transpose(1, 2) for output in outputs], 1)


@dataclass(frozen=True, slots=True)
class Laid:
    """Model inputs, and for each of the M completion tokens, row by row, the flat index of the state predicting it."""

    input_ids: Tensor
    position_ids: Tensor | None
    mask: Tensor | None
    plan: AttentionPlan | None
    source_M: Tensor


def packed(batch: Batch, device: torch.device) -> Laid:
    """One row [1, N]; adjacent rows with equal prompts share it."""
    ids: list[Tensor] = []
    positions: list[Tensor] = []
    sources: list[Tensor] = []
    clusters: list[Cluster] = []
    lengths = batch.lengths_B.tolist()
    start = 0
    for prompt, rows in groupby(range(len(batch)), key=lambda row: batch.prompt_token_ids[row]):
        _require_prompt(prompt)
        num_prompt, fed_sizes = len(prompt), []
        ids.append(torch.tensor(prompt))
        positions.append(torch.arange(num_prompt))
        last, start = start + num_prompt - 1, start + num_prompt
        for row in rows:
            fed = max(0, lengths[row] - 1)
            ids.append(batch.completion_ids_BT[row, :fed].cpu())
            positions.append(torch.arange(num_prompt, num_prompt + fed))
            sources.append(torch.tensor([last] * min(1, lengths[row])))
            sources.append(torch.arange(start, start + fed))
            fed_sizes.append(fed)
            start += fed
        clusters.append(_merged(num_prompt, fed_sizes))
    return Laid(
        input_ids=torch.cat(ids)[None].to(device),
        position_ids=torch.cat(positions)[None].to(device),
        mask=None,
        plan=SharedPrompts(tuple(clusters)),
        source_M=torch.cat(sources).long().to(device),
    )


def padded(batch: Batch, device: torch.device) -> Laid:
    """One row [S] per rollout, right-padded; which tokens exist is known from lengths, never from ids."""
    lengths = batch.lengths_B.tolist()
    rows = []
    for row, prompt in enumerate(batch.prompt_token_ids):
        _require_prompt(prompt)
        fed = batch.completion_ids_BT[row, : max(0, lengths[row] - 1)].cpu()
        rows.append(torch.cat([torch.tensor(prompt), fed]))
    width = max(map(len, rows))
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    sources = []
    for row, ids in enumerate(rows):
        input_ids[row, : len(ids)] = ids
        mask[row, : len(ids)] = 1
        first = row * width + len(batch.prompt_token_ids[row]) - 1
        sources.append(torch.arange(first, first + lengths[row]))
    return Laid(input_ids.to(device), None, mask.to(device), None, torch.cat(sources).to(device))


def completion_mask(batch: Batch) -> Tensor:
    """[B, T], True where a completion token exists."""
    steps_T = torch.arange(batch.completion_ids_BT.shape[1], device=batch.lengths_B.device)
    return steps_T < batch.lengths_B[:, None]


def _merged(num_prompt: int, fed_sizes: Sequence[int]) -> Cluster:
    """A lone completion is simply the rest of one causal sequence."""
    sizes = tuple(size for size in fed_sizes if size)
    return Cluster(num_prompt + sum(sizes), ()) if len(sizes) <= 1 else Cluster(num_prompt, sizes)


def _lower_right(num_queries: int, num_prompt: int, device: torch.device) -> Tensor:
    mask = torch.ones(num_queries, num_prompt + num_queries, dtype=torch.bool, device=device)
    return mask.tril(num_prompt)


def _sdpa(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    return scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=queries.shape[1] != keys.shape[1],
    )


def _require_prompt(prompt: Sequence[int]) -> None:
    if not prompt:
        raise ValueError("a rollout has an empty prompt: its first completion token has nothing to be predicted from")
