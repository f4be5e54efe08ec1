"""Logits of some tokens over a part of the vocabulary, used and forgotten: the torch form, for every device.

A part of the vocabulary tells four numbers per token (`Totals`), and parts add up to the whole: the online softmax of
https://arxiv.org/abs/1805.02867, with one more sum for the entropy. Letters: N tokens, C of a chunk, D hidden, V
vocabulary, W of a tile, S parts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

FLOOR = torch.finfo(torch.float32).min / 2  # below every logit, yet finite: a difference of two floors is 0


class Totals(NamedTuple):
    """What a part of the vocabulary tells about each token: [N], or [S, N] for several parts."""

    top_N: Tensor
    """The largest logit."""
    mass_N: Tensor
    """sum e^(z - top)."""
    pull_N: Tensor
    """sum e^(z - top) (z - top); 0 where no entropy is asked for."""
    target_N: Tensor
    """The target's logit; -inf where another part holds it."""

    def rebased(self, top_N: Tensor) -> "Totals":
        """The same numbers relative to another top."""
        shift_N = self.top_N - top_N
        scale_N = shift_N.exp()
        return Totals(top_N, scale_N * self.mass_N, scale_N * (self.pull_N + self.mass_N * shift_N), self.target_N)

    def merged(self) -> "Totals":
        """[S, N] parts as the [N] whole."""
        top_N = self.top_N.amax(0)
        parts = self.rebased(top_N)
        return Totals(top_N, parts.mass_N.sum(0), parts.pull_N.sum(0), parts.target_N.amax(0))


class Slopes(NamedTuple):
    """How the loss moves with each token's logits: dz_v = p_v (push - pull log p_v) + hit 1[v = y], all [N]."""

    logsum_N: Tensor
    hit_N: Tensor
    push_N: Tensor
    pull_N: Tensor | None

    def rows(self, part: slice | Tensor) -> "Slopes":
        """Of some of the tokens."""
        return Slopes(*(None if values_N is None else values_N[part] for values_N in self))

    def moving(self) -> slice | Tensor:
        """The tokens that the loss depends on."""
        moves_N = self.hit_N != 0 if self.pull_N is None else (self.hit_N != 0) | (self.pull_N != 0)
        index_M = moves_N.nonzero().squeeze(1)
        return slice(None) if len(index_M) == len(moves_N) else index_M


@dataclass(frozen=True, slots=True)
class Cut:
    """The size of a tile, in tokens and in entries of the vocabulary."""

    tokens: int
    columns: int

    def rows(self, num_tokens: int) -> list[slice]:
        """Chunks of tokens; one empty chunk where there is no token."""
        return list(parts(max(num_tokens, 1), self.tokens))


class Tiles:
    """Every tile of a head's logits, in two buffers that all of them use."""

    def __init__(self, weight_VD: Tensor, bias_V: Tensor | None, temperature: float, cut: Cut) -> None:
        self._weight_VD, self._bias_V, self._temperature, self._cut = weight_VD, bias_V, temperature, cut
        size = cut.tokens * cut.columns
        self._logits = weight_VD.new_empty(size, dtype=accurate(weight_VD.dtype))
        self._spare = torch.empty_like(self._logits)
        self._low = self._logits if weight_VD.dtype == self._logits.dtype else weight_VD.new_empty(size)

    def totals(self, hidden_ND: Tensor, targets_N: Tensor, *, entropy: bool) -> Totals:
        """Over the whole vocabulary of this head."""
        done = []
        for rows in self._cut.rows(len(hidden_ND)):
            hidden_CD, targets_C = hidden_ND[rows], targets_N[rows]
            seen = [_nothing(targets_C, self._logits.dtype)]
            for columns in parts(len(self._weight_VD), self._cut.columns):
                logits_CW, spare_CW = self._fill(hidden_CD, columns)
                seen.append(totals_of(logits_CW, spare_CW, targets_C - columns.start, entropy=entropy))
            done.append(Totals(*map(torch.stack, zip(*seen, strict=True))).merged())
        return Totals(*map(torch.cat, zip(*done, strict=True)))

    def gradient(self, hidden_CD: Tensor, targets_C: Tensor, slopes: Slopes, columns: slice) -> Tensor:
        """Of the loss to one tile's logits before the temperature, in the weight's numbers; lives until the next."""
        logits_CW, spare_CW = self._fill(hidden_CD, columns)
        grad_CW = gradient_of(logits_CW, spare_CW, targets_C - columns.start, slopes)
        return grad_CW if self._low is self._logits else _view(self._low, grad_CW.shape).copy_(grad_CW)

    def _fill(self, hidden_CD: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
        weight_WD = self._weight_VD[columns]
        shape = (len(hidden_CD), len(weight_WD))
        logits_CW = _view(self._logits, shape)
        low_CW = torch.mm(hidden_CD, weight_WD.T, out=_view(self._low, shape))
        if self._low is not self._logits:
            logits_CW.copy_(low_CW)
        _finish(logits_CW, self._bias_V, columns, self._temperature)
        return logits_CW, _view(self._spare, shape)


class KeptTiles:
    """The same with the logits of `cut.tokens` tokens kept from `totals` until their `gradient`, so computed once.

    For heads in accurate numbers alone. Each tile's gradient may be asked for once.
    """

    def __init__(self, weight_VD: Tensor, bias_V: Tensor | None, temperature: float, cut: Cut) -> None:
        self._weight_VD, self._bias_V, self._temperature, self._cut = weight_VD, bias_V, temperature, cut
        self._logits = weight_VD.new_empty(cut.tokens * len(weight_VD))
        self._spare = weight_VD.new_empty(cut.tokens * cut.columns)
        self._tops: dict[int, Tensor] = {}
        self._rows: slice | Tensor = slice(None)

    def totals(self, hidden_CD: Tensor, targets_C: Tensor, *, entropy: bool) -> Totals:
        """Over the whole vocabulary of this head, of exactly `cut.tokens` tokens."""
        seen = [_nothing(targets_C, self._logits.dtype)]
        for columns in parts(len(self._weight_VD), self._cut.columns):
            logits_CW = torch.mm(hidden_CD, self._weight_VD[columns].T, out=self._tile(columns))
            _finish(logits_CW, self._bias_V, columns, self._temperature)
            spare_CW = _view(self._spare, logits_CW.shape)
            seen.append(totals_of(logits_CW, spare_CW, targets_C - columns.start, entropy=entropy))
            self._tops[columns.start] = seen[-1].top_N
        return Totals(*map(torch.stack, zip(*seen, strict=True))).merged()

    def narrow(self, rows: slice | Tensor) -> None:
        """The tokens that gradients are asked for."""
        self._rows = rows

    def gradient(self, hidden_CD: Tensor, targets_C: Tensor, slopes: Slopes, columns: slice) -> Tensor:
        """See `Tiles.gradient`, of the tokens that it was narrowed to."""
        logits_CW = self._tile(columns)[self._rows]  # less their top
        slopes = slopes._replace(logsum_N=slopes.logsum_N - self._tops[columns.start][self._rows])
        return gradient_of(logits_CW, _view(self._spare, logits_CW.shape), targets_C - columns.start, slopes)

    def _tile(self, columns: slice) -> Tensor:
        num, stop = self._cut.tokens, min(columns.stop, len(self._weight_VD))
        return self._logits[num * columns.start : num * stop].view(num, -1)


def totals_of(logits_CW: Tensor, spare_CW: Tensor, targets_C: Tensor, *, entropy: bool) -> Totals:
    """Of one tile; overwrites both buffers."""
    top_C1 = logits_CW.amax(-1, keepdim=True).clamp_(min=FLOOR)  # a tile may hold nothing but -inf
    index_C1, inside_C = _within(targets_C, logits_CW.shape[1])
    target_C = logits_CW.gather(1, index_C1).squeeze(1).masked_fill_(~inside_C, -torch.inf)
    logits_CW -= top_C1
    odds_CW = torch.exp(logits_CW, out=spare_CW)
    mass_C = odds_CW.sum(-1)
    pull_C = odds_CW.mul_(logits_CW).sum(-1) if entropy else torch.zeros_like(mass_C)
    return Totals(top_C1.squeeze(1), mass_C, pull_C, target_C)


def gradient_of(logits_CW: Tensor, spare_CW: Tensor, targets_C: Tensor, slopes: Slopes) -> Tensor:
    """Of the loss to one tile's logits; overwrites both buffers and returns the first."""
    logp_CW = logits_CW.sub_(slopes.logsum_N[:, None])
    if slopes.pull_N is None:
        grad_CW = logp_CW.exp_().mul_(slopes.push_N[:, None])
    else:
        probs_CW = torch.exp(logp_CW, out=spare_CW)
        grad_CW = torch.addcmul(slopes.push_N[:, None], logp_CW, slopes.pull_N[:, None], value=-1, out=logp_CW)
        grad_CW *= probs_CW
    index_C1, inside_C = _within(targets_C, logits_CW.shape[1])
    return grad_CW.scatter_add_(1, index_C1, slopes.hit_N.masked_fill(~inside_C, 0)[:, None])


def accurate(dtype: torch.dtype) -> torch.dtype:
    """The numbers that sums over the vocabulary are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def parts(num: int, size: int) -> Iterator[slice]:
    """Neighbouring slices of at most `size`."""
    return (slice(start, min(start + size, num)) for start in range(0, num, size))


def _finish(logits_CW: Tensor, bias_V: Tensor | None, columns: slice, temperature: float) -> None:
    """What is left after the product, in place."""
    if bias_V is not None:
        logits_CW += bias_V[columns]
    if temperature != 1.0:
        logits_CW *= 1.0 / temperature


def _within(targets_C: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Places of the targets in a tile as [C, 1], and which targets are in it."""
    index_C = targets_C.clamp(0, width - 1)
    return index_C[:, None], index_C == targets_C


def _nothing(targets_C: Tensor, dtype: torch.dtype) -> Totals:
    zeros_C = torch.zeros_like(targets_C, dtype=dtype)
    return Totals(torch.full_like(zeros_C, FLOOR), zeros_C, zeros_C, torch.full_like(zeros_C, -torch.inf))


def _view(buffer: Tensor, shape: tuple[int, int]) -> Tensor:
    return buffer[: shape[0] * shape[1]].view(shape)
