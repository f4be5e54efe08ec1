"""The one attention function that our models run with: a plan of ours where a call brings one, else torch's SDPA.

Trainer and engine share a module, so they share its attention: the call says what it is. A plan (packed rows, shared
prompts, decoding) travels as keyword argument `lightrft_plan` through transformers' layers to here. Calls without one
behave as `attn_implementation="sdpa"`.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

ATTENTION = "lightrft"


class AttentionPlan(Protocol):
    """Which keys each query sees, and the way to compute it."""

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """[1 or B, heads, Q, D] queries over [1 or B, kv_heads, S, D] keys and values -> [1 or B, Q, heads, D]."""


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    lightrft_plan: AttentionPlan | None = None,
    **kwargs: Any,  # Any: whatever transformers hands to attention functions
) -> tuple[Tensor, None]:
    """Attend by the call's plan; without one as SDPA does."""
    if lightrft_plan is not None:
        return lightrft_plan.attend(module, query, key, value, scaling), None
    output: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **kwargs
    )
    return output


def register_attention() -> str:
    """Make the function known to transformers; returns its name for `attn_implementation`. Safe to call again."""
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    return ATTENTION


def no_mask(device: torch.device) -> Tensor:
    """A mask that makes transformers build none: 4-D masks are handed on as they are, and plans ignore it."""
    return torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=device)
