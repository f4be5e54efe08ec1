"""The embedded engine's memory: keys and values of prompts and rows, and what reading and writing compute."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from lightrft_core.data import Sampling
from torch import Tensor, nn

from lightrft_engines.attention import AttentionPlan, no_mask
from lightrft_engines.decode.cache import FIRST_COLUMNS
from lightrft_engines.decode.distribution import draw
from lightrft_engines.embedded_config import EmbeddedConfig
from lightrft_engines.estimate.meter import DEVICE, Weightless
from lightrft_engines.estimate.work import Rows
from lightrft_engines.packing import Cluster, SharedPrompts


@dataclass(frozen=True, slots=True)
class Load:
    """What one call of `generate` holds at most: rows and prompts at one time, and the columns of rows' own keys."""

    rows: int
    prompts: int
    prompt_tokens: int
    columns: int

    def tokens(self, *, shares: bool) -> int:
        """Places for a token's keys and values in each layer; without sharing a row has its prompt's too."""
        if shares:
            return self.rows * self.columns + self.prompts * self.prompt_tokens
        return self.rows * (self.columns + self.prompt_tokens)


def load_of(rows: Rows, config: EmbeddedConfig) -> Load:
    """As `decode.cache` allocates it: columns double, and once more where rows join while others run."""
    num = rows.num_prompts * rows.group_size
    at_once = min(config.max_batch_size, num)
    joins = num > at_once
    columns, needed = min(FIRST_COLUMNS, rows.completion_tokens), rows.completion_tokens - 1
    while columns < needed * (2 if joins else 1):
        columns *= 2
    prompts = -(-at_once // rows.group_size)
    return Load(at_once, min(2 * prompts, at_once) if joins else prompts, rows.prompt_tokens, columns)


def key_numbers(model: Weightless, num_blocks: int, *, shares: bool) -> int:
    """Numbers that a token's keys and values take in all layers; by the config where the model takes no plan."""
    if not shares:
        text = model.module.config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return int(2 * heads * width * num_blocks)
    plan = _Widths(SharedPrompts((Cluster(1, ()),)))
    with model.metered(), torch.no_grad():
        model.module(**_inputs(1, 1, 1, plan))
    return round(sum(plan.seen.values()) / len(plan.seen) * num_blocks)


def reading(load: Load, max_tokens: int, *, shares: bool) -> Callable[[nn.Module], Tensor]:
    """Prompts in one pass, as many as may go."""
    num = max(1, min(load.prompts, max_tokens // load.prompt_tokens))
    plan = SharedPrompts((Cluster(load.prompt_tokens, ()),) * num)

    def compute(module: nn.Module) -> Tensor:
        if not shares:
            padded: Tensor = module(**_inputs(num, load.prompt_tokens, 1, None)).logits
            return padded
        last_P = torch.zeros(num, dtype=torch.long)
        logits: Tensor = module(**_inputs(1, num * load.prompt_tokens, last_P, plan)).logits
        return logits

    return compute


def writing(load: Load, sampling: Sampling, *, shares: bool) -> Callable[[nn.Module], Tensor]:
    """One token for every row, and the draw."""

    def compute(module: nn.Module) -> Tensor:
        logits_RV = module(**_inputs(load.rows, 1, 1, _Nothing() if shares else None)).logits[:, 0]
        tokens_R, _ = draw(logits_RV, torch.zeros(load.rows, dtype=torch.float64), sampling)
        return tokens_R

    return compute


@dataclass(slots=True)
class _Widths:
    """An attention plan that notes what a token's keys and values take in each layer, and attends as another does."""

    inner: AttentionPlan
    seen: dict[int, int] = field(default_factory=dict)

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        self.seen[module.layer_idx] = key.shape[1] * (key.shape[-1] + value.shape[-1])
        return self.inner.attend(module, query, key, value, scaling)


class _Nothing:
    """Attends to nothing: what the rest of a step takes."""

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        num, heads, tokens, _ = query.shape
        return query.new_zeros(num, tokens, heads, value.shape[-1])


def _inputs(num_rows: int, num_tokens: int, logits: int | Tensor, plan: AttentionPlan | None) -> dict[str, object]:
    """Of a call of the model, as `decode.readers` makes it."""
    ids = torch.zeros(num_rows, num_tokens, dtype=torch.long)
    if plan is None:
        return {"input_ids": ids, "use_cache": False, "logits_to_keep": logits}
    return {
        "input_ids": ids,
        "position_ids": ids,
        "attention_mask": no_mask(DEVICE),
        "use_cache": False,
        "logits_to_keep": logits,
        "lightrft_plan": plan,
    }
