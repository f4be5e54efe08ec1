"""The largest pass of a step: the longest rows that may come, cut and laid out as the strategy does it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import torch
from lightrft_core.data import Batch
from lightrft_core.protocols import Layout
from torch import Tensor, nn

from lightrft_engines.estimate.meter import DEVICE, Weightless
from lightrft_engines.head import logprobs_of_logits, token_logprobs
from lightrft_engines.head_loss import HeadLoss
from lightrft_engines.logprobs import Abilities, decoder_states, hidden_states, own_logits
from lightrft_engines.packing import Laid, SharedPrompts, packed, padded
from lightrft_engines.training.microbatch import Limits, cut_packed, cut_padded

MANY, FEW_COLUMNS = 1 << 28, 8192  # logits of one pass, and the part of a vocabulary that is traced where they are more


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one rank, all as long as they may be."""

    num_prompts: int
    group_size: int
    prompt_tokens: int
    completion_tokens: int

    def batch(self) -> Batch:
        """With tokens that mean nothing; `mask_BT` and other fields are as narrow as they can be."""
        num = self.num_prompts * self.group_size
        prompts = [(number, *[0] * (self.prompt_tokens - 1)) for number in range(self.num_prompts)]
        zeros_B1 = torch.zeros(num, 1)
        return Batch(
            prompt_ids=("",) * num,
            prompt_token_ids=tuple(prompt for prompt in prompts for _ in range(self.group_size)),
            completion_ids_BT=zeros_B1.long().expand(num, self.completion_tokens),
            mask_BT=zeros_B1.bool(),
            lengths_B=torch.full((num,), self.completion_tokens),
            group_B=torch.arange(num) // self.group_size,
            rewards_B=zeros_B1[:, 0],
            scored_B=zeros_B1[:, 0].bool(),
            engine_logprobs_BT=zeros_B1,
        )


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass of some rows over a model that can do `abilities`; `ranks` share each sequence.

    `completion_tokens` are those of each row.
    """

    laid: Laid
    num_targets: int
    completion_tokens: int
    abilities: Abilities
    chunk: int | None
    ranks: int

    @property
    def key(self) -> tuple[object, ...]:
        """What a trace of it depends on."""
        plan = self.laid.plan.whole if isinstance(self.laid.plan, SharedHeads) else self.laid.plan
        shape = tuple(self.laid.input_ids.shape)
        return (shape, self.num_targets, self.completion_tokens, plan, self.chunk, self.ranks)

    @property
    def tokens(self) -> int:
        """Tokens of this rank, padding included."""
        return int(self.laid.input_ids.numel())

    def logprobs(self, model: Weightless) -> Callable[[nn.Module], Tensor]:
        """What policy and reference compute: log-probabilities and entropy, summed."""
        laid, targets_M = self._fake(model)

        def compute(module: nn.Module) -> Tensor:
            if self.abilities.fused_head:
                states_MD = hidden_states(module, laid).flatten(0, 1)[laid.source_M]
                head = _narrowed(module.get_output_embeddings(), len(targets_M))
                values_M, _ = token_logprobs(states_MD, head, targets_M, 1.0, entropy=True, chunk=self.chunk)
            else:
                logits_MV = own_logits(module, laid).flatten(0, 1)[laid.source_M]
                values_M, _ = logprobs_of_logits(logits_MV, targets_M, 1.0, entropy=True)
            return values_M.sum()

        return compute

    def loss(self, model: Weightless) -> Callable[[nn.Module], Tensor]:
        """What the policy learns from, where its head is one that `head_loss.pays` for."""
        laid, targets_M = self._fake(model)
        lengths = [self.completion_tokens] * (self.num_targets // max(1, self.completion_tokens))

        def compute(module: nn.Module) -> Tensor:
            states_MD = hidden_states(module, laid).flatten(0, 1)[laid.source_M]
            by_head = HeadLoss(module.get_output_embeddings(), 1.0, entropy=True, chunk=self.chunk)
            return by_head.of(states_MD, targets_M, lengths, lambda rows, values_C, entropy_C: values_C.sum())

        return compute

    def values(self, model: Weightless) -> Callable[[nn.Module], Tensor]:
        """What a critic computes."""
        laid, _ = self._fake(model)

        def compute(module: nn.Module) -> Tensor:
            states_MD = decoder_states(module.backbone, laid).flatten(0, 1)[laid.source_M]
            return (states_MD.float() @ module.head.weight.float()[0]).sum()

        return compute

    def _fake(self, model: Weightless) -> tuple[Laid, Tensor]:
        """The inputs in the model's world."""
        laid = self.laid
        positions = None if laid.position_ids is None else model.fake(laid.position_ids)
        mask = None if laid.mask is None else model.fake(laid.mask)
        ids, source_M = model.fake(laid.input_ids), model.fake(laid.source_M)
        targets_M = model.fake(torch.zeros(self.num_targets, dtype=torch.long))
        return replace(laid, input_ids=ids, position_ids=positions, mask=mask, source_M=source_M), targets_M


@dataclass(frozen=True, slots=True)
class SharedHeads:
    """The attention plan of a rank that shares sequences: see `sequence.SharedAttention`, without the other ranks."""

    whole: SharedPrompts
    ranks: int

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """As many heads fewer as tokens more."""
        shape = (1, query.shape[2], query.shape[1], -1)
        query, key, value = self._met(query), self._met(self._enough(key)), self._met(self._enough(value))
        return self.whole.attend(module, query, key, value, scaling).reshape(shape).clone()

    def _enough(self, part: Tensor) -> Tensor:
        repeats = self.ranks // part.shape[1]
        return part.repeat_interleave(repeats, 1) if repeats > 1 else part

    def _met(self, part_1HnD: Tensor) -> Tensor:
        _, heads, num, width = part_1HnD.shape
        return part_1HnD.reshape(1, heads // self.ranks, num * self.ranks, width).clone()


@dataclass(frozen=True, slots=True)
class Cutter:
    """How a strategy lays rows out."""

    abilities: Abilities
    layout: Layout
    chunk: int | None
    ranks: int = 1

    def passes(self, rows: Rows, limits: Limits) -> tuple[int, Pass]:
        """How many passes the rows take, and the largest. `ValueError` where the layout cannot be had."""
        batch = rows.batch()
        is_packed = self.abilities.layout(self.layout, batch) == "packed"
        parts = (cut_packed if is_packed else cut_padded)(batch, range(len(batch)), limits)
        lay = packed if is_packed else padded
        laid = max((lay(batch.rows(part), DEVICE) for part in parts), key=lambda laid: laid.input_ids.numel())
        return len(parts), self._of_one_rank(laid, rows.completion_tokens)

    def _of_one_rank(self, laid: Laid, completion_tokens: int) -> Pass:
        num_targets = len(laid.source_M)
        if self.ranks > 1:
            laid = _slice(laid, self.ranks)
        num_targets = min(num_targets, len(laid.source_M))
        return Pass(laid, num_targets, completion_tokens, self.abilities, self.chunk, self.ranks)


class _FirstRows(torch.autograd.Function):  # type: ignore[misc]  # mypy does not follow torch
    """Some rows of a weight, whose gradient is that of the whole."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, num: int) -> Tensor:  # Any: autograd's context
        ctx.like = weight
        return weight[:num].detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # Any: autograd's context
        return torch.empty_like(ctx.like), None


def _narrowed(head: nn.Linear, num_tokens: int) -> nn.Linear:
    """An output layer of fewer tiles where there are very many: each is used and forgotten, so some tell of all."""
    if num_tokens * len(head.weight) <= MANY or len(head.weight) <= FEW_COLUMNS:
        return head
    bias = None if head.bias is None else _FirstRows.apply(head.bias, FEW_COLUMNS)
    narrow = SimpleNamespace(weight=_FirstRows.apply(head.weight, FEW_COLUMNS), bias=bias)
    return cast(nn.Linear, narrow)


def _slice(laid: Laid, ranks: int) -> Laid:
    """What one rank computes of a packed row: at worst all its tokens predict one."""
    assert isinstance(laid.plan, SharedPrompts)  # `layout` saw to it
    width = -(-laid.input_ids.shape[1] // ranks)
    missing = width * ranks - laid.input_ids.shape[1]
    clusters = (*laid.plan.clusters, *([type(laid.plan.clusters[0])(missing, ())] if missing else []))
    zeros_1n = torch.zeros(1, width, dtype=torch.long)
    plan = SharedHeads(SharedPrompts(clusters), ranks)
    source_M = torch.arange(min(width, len(laid.source_M)))
    return Laid(zeros_1n, zeros_1n, None, plan, source_M)
