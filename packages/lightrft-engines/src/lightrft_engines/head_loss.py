"""From hidden states to a loss and its gradients at once, so that most logits are computed a single time.

What a loss asks of a token is known as soon as the token's sequence has gone through the head, for a loss does not
depend on how a batch is cut. So a few sequences go through it at a time: log-probabilities, their share of the loss,
its slopes, and from the logits, which are still there, the gradients. That is three matrix products where a loss of the
whole batch needs four. Letters: N tokens, C of a piece, M of these that the loss depends on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightrft_engines.head import cut_of, results, slopes_of
from lightrft_engines.head_shards import Head, VocabShard
from lightrft_engines.head_tiles import KeptTiles, Slopes, Tiles, Totals, accurate, parts

Share = Callable[[slice, Tensor, Tensor | None], Tensor]
# Measured: products over so many tokens are as fast as over more, however often they add to the weight's gradient.
ENOUGH_TOKENS = 256
PART, FREE_BYTES = 4, 64 << 20  # the part of a pass's logits that may be kept, and what may be in any case


def pays(weight_VD: Tensor) -> bool:
    """In low precision the gradients of pieces would have to add up in a wide copy of the weight."""
    is_accurate: bool = weight_VD.dtype == accurate(weight_VD.dtype)
    return weight_VD.device.type == "cpu" and is_accurate


@dataclass(frozen=True, slots=True)
class HeadLoss:
    """A loss of the log-probabilities that a head gives, where that `pays`; see `head.token_logprobs` for the options.

    A sequence of more tokens than `chunk`, or than the limit that holds memory down, goes through the head twice.
    """

    head: Head
    temperature: float
    entropy: bool = False
    chunk: int | None = None
    shard: VocabShard | None = None

    def of(self, hidden_ND: Tensor, targets_N: Tensor, lengths: Sequence[int], share: Share) -> Tensor:
        """The sum of what `share(sequences, logprobs_C, entropy_C)` returns, with its gradients.

        The N tokens are those of sequences of these lengths, one after another. `share` is called with neighbouring
        sequences, each of them once, and returns a scalar that depends on the model by its arguments alone.
        """
        learning = (hidden_ND, self.head.weight, self.head.bias)
        with torch.no_grad():
            sums = _Sums(*(torch.zeros_like(x) if x is not None and x.requires_grad else None for x in learning))
            loss, most = hidden_ND.new_zeros(()), self._most(len(targets_N))
            for sequences, tokens in _pieces(lengths, min(most, max(self._free, ENOUGH_TOKENS))):
                piece = _Piece(hidden_ND[tokens], targets_N[tokens], sequences, tokens)
                loss += self._learn(piece, share, sums, is_kept=len(piece.targets_C) <= most)
            if sums.hidden_ND is not None and self.shard is not None:
                self.shard.add_up(sums.hidden_ND)
        value: Tensor = _Known.apply(*learning, loss, sums)
        return value

    @property
    def _free(self) -> int:
        """Tokens whose logits are no matter; none where ranks with parts of other sizes must cut alike."""
        return 0 if self.shard is not None else FREE_BYTES // max(1, int(self.head.weight[:, :1].nbytes))

    def _most(self, num_tokens: int) -> int:
        """Tokens whose logits may be kept."""
        most = max(self._free, num_tokens // PART)
        return most if self.chunk is None else min(most, self.chunk)

    def _learn(self, piece: "_Piece", share: Share, sums: "_Sums", *, is_kept: bool) -> Tensor:
        """One piece's share of the loss; adds its gradients."""
        weight_VD, bias_V = self.head.weight, self.head.bias
        cut = cut_of(weight_VD, len(piece.targets_C), None if is_kept else self.chunk)
        tiles = (KeptTiles if is_kept else Tiles)(weight_VD, bias_V, self.temperature, cut)
        own_C = piece.targets_C if self.shard is None else piece.targets_C - self.shard.first
        totals = tiles.totals(piece.hidden_CD, own_C, entropy=self.entropy)
        value, slopes = self._judged(totals if self.shard is None else self.shard.merged(totals), piece, share)
        moving = slopes.moving()
        if isinstance(tiles, KeptTiles):
            tiles.narrow(moving)
        hidden_MD, own_M, slopes = piece.hidden_CD[moving], own_C[moving], slopes.rows(moving)
        grad_MD = torch.zeros_like(hidden_MD)
        for columns in parts(len(weight_VD), cut.columns) if len(own_M) else ():
            for rows in cut.rows(len(own_M)):
                grad_CW = tiles.gradient(hidden_MD[rows], own_M[rows], slopes.rows(rows), columns)
                sums.add(grad_CW, hidden_MD[rows], columns)
                if sums.hidden_ND is not None:
                    grad_MD[rows].addmm_(grad_CW, weight_VD[columns])
        if sums.hidden_ND is not None:
            sums.hidden_ND[piece.tokens][moving] = grad_MD
        return value

    def _judged(self, totals: Totals, piece: "_Piece", share: Share) -> tuple[Tensor, Slopes]:
        """The share, and how it moves with the tokens' logits."""
        logprobs_C, entropy_C, logsum_C = results(totals, self.entropy)
        given = [x.requires_grad_() for x in (logprobs_C, entropy_C) if x is not None]
        with torch.enable_grad():
            value = share(piece.sequences, logprobs_C, entropy_C)
            found = torch.autograd.grad(value, given, allow_unused=True) if value.requires_grad else ()
        grad_C, grad_entropy_C = (*found, None, None)[:2]
        return value.detach(), slopes_of(grad_C, grad_entropy_C, logsum_C, entropy_C, self.temperature)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some sequences' tokens, and where these are among all."""

    hidden_CD: Tensor
    targets_C: Tensor
    sequences: slice
    tokens: slice


@dataclass(slots=True)
class _Sums:
    """Gradients, where they are needed."""

    hidden_ND: Tensor | None
    weight_VD: Tensor | None
    bias_V: Tensor | None

    def add(self, grad_CW: Tensor, hidden_CD: Tensor, columns: slice) -> None:
        """What one tile's logits tell of weight and bias."""
        if self.weight_VD is not None:
            self.weight_VD[columns].addmm_(grad_CW.T, hidden_CD)
        if self.bias_V is not None:
            self.bias_V[columns] += grad_CW.sum(0)

    def take(self, factor: Tensor) -> tuple[Tensor | None, ...]:
        """All of them times the factor; nothing is left here, so that each has one owner."""
        taken = (self.hidden_ND, self.weight_VD, self.bias_V)
        self.hidden_ND = self.weight_VD = self.bias_V = None
        return tuple(None if x is None else x.mul_(factor) for x in taken)


class _Known(torch.autograd.Function):  # type: ignore[misc]  # mypy does not follow torch
    """A loss whose gradients are known."""

    @staticmethod
    def forward(
        ctx: Any,  # Any: autograd's context
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        loss: Tensor,
        sums: _Sums,
    ) -> Tensor:
        ctx.sums = sums
        return loss.clone()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]  # the same
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:  # Any: autograd's context
        sums, ctx.sums = ctx.sums, None
        if sums is None:
            raise RuntimeError("the gradients of this loss were taken already")
        return (*sums.take(factor), None, None)


def _pieces(lengths: Sequence[int], most: int) -> Iterator[tuple[slice, slice]]:
    """Sequences and tokens of each piece: as many neighbours as `most` tokens allow, and one at the least."""
    first = start = stop = 0
    for number, length in enumerate(lengths):
        if number > first and stop + length - start > most:
            yield slice(first, number), slice(start, stop)
            first, start = number, stop
        stop += length
    if first < len(lengths):
        yield slice(first, len(lengths)), slice(start, stop)
