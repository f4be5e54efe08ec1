"""From hidden states to log-probabilities of given tokens, without ever holding all logits.

    log p(y | h) = z_y - log sum_v exp z_v,   z = (W h + b) / temperature
    entropy      = log sum_v exp z_v - sum_v p_v z_v

Logits exist for one tile at a time, some tokens by a part of the vocabulary, and are computed once more in the backward
pass. The vocabulary is the outer loop there: a part's weight gradient is complete before the next part begins, so that
it is written once, in the weight's own numbers.
"""

import importlib.util
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightrft_engines.head_shards import Head, VocabShard
from lightrft_engines.head_tiles import Cut, Slopes, Tiles, Totals, accurate, gradient_of, parts, totals_of

if TYPE_CHECKING:
    from lightrft_engines.head_kernels import KernelTiles

# Measured: with tiles of this size a CPU takes a few percent more than the matrix products alone.
CPU_TOKENS, CPU_TILE = 2048, 2 << 20
GPU_TOKENS, GPU_TILE = 8192, 32 << 20
MAX_COLUMNS, GRAIN = 8192, 128


def token_logprobs(
    hidden_ND: Tensor,
    head: Head,
    targets_N: Tensor,
    temperature: float,
    *,
    entropy: bool = False,
    chunk: int | None = None,
    shard: VocabShard | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target, and the entropy where asked for: [N], in fp32 (fp64 for an fp64 model).

    Both carry gradients to hidden states, weight and bias. `chunk` is the number of tokens whose logits exist at one
    time, by default at most 2048 on a CPU and 8192 on a GPU. With `shard`, `head` holds this rank's rows, and every
    rank gets the whole vocabulary's result. A target outside the vocabulary has the log-probability -inf.
    """
    cut = cut_of(head.weight, len(targets_N), chunk)
    options = _Options(temperature, entropy, cut, shard)
    logprobs_N, entropy_N = _TokenLogProbs.apply(hidden_ND, head.weight, head.bias, targets_N, options)
    return logprobs_N, entropy_N


def logprobs_of_logits(
    logits_NV: Tensor, targets_N: Tensor, temperature: float, *, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The same from logits that a model computed in its own way; beside them only their gradient is ever as large."""
    logprobs_N, entropy_N = _LogitLogProbs.apply(logits_NV, targets_N, temperature, entropy)
    return logprobs_N, entropy_N


@dataclass(frozen=True, slots=True)
class _Options:
    temperature: float
    entropy: bool
    cut: Cut
    shard: VocabShard | None


class _TokenLogProbs(torch.autograd.Function):  # type: ignore[misc]  # mypy does not follow torch
    @staticmethod
    def forward(
        ctx: Any,  # Any: autograd's context
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        options: _Options,
    ) -> tuple[Tensor, Tensor | None]:
        own_N = targets_N if options.shard is None else targets_N - options.shard.first
        totals = _tiles(weight_VD, bias_V, options).totals(hidden_ND, own_N, entropy=options.entropy)
        if options.shard is not None:
            totals = options.shard.merged(totals)
        logprobs_N, entropy_N, logsum_N = results(totals, options.entropy)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, own_N, logsum_N, entropy_N)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]  # the same
    def backward(
        ctx: Any,  # Any: autograd's context
        grad_N: Tensor | None,
        grad_entropy_N: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N, logsum_N, entropy_N = ctx.saved_tensors
        options: _Options = ctx.options
        slopes = slopes_of(grad_N, grad_entropy_N, logsum_N, entropy_N, options.temperature)
        moving = slopes.moving()  # a token that is masked, clipped or without advantage costs nothing here
        tokens = _Tokens(hidden_ND[moving], targets_N[moving], slopes.rows(moving))
        grad_MD, grad_VD, grad_V = _gradients(tokens, weight_VD, bias_V, options, ctx.needs_input_grad)
        grad_ND = None
        if grad_MD is not None:
            is_whole = len(grad_MD) == len(hidden_ND)
            grad_ND = grad_MD if is_whole else grad_MD.new_zeros(hidden_ND.shape).index_copy_(0, moving, grad_MD)
            grad_ND = grad_ND if options.shard is None else options.shard.add_up(grad_ND)
            grad_ND = grad_ND.to(hidden_ND.dtype)
        return grad_ND, grad_VD, None if grad_V is None else grad_V.to(bias_V.dtype), None, None


@dataclass(frozen=True, slots=True)
class _Tokens:
    hidden_MD: Tensor
    targets_M: Tensor
    slopes: Slopes


def _gradients(
    tokens: _Tokens, weight_VD: Tensor, bias_V: Tensor | None, options: _Options, needed: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of hidden states, weight and bias, where they are needed; sums over tiles are fp32."""
    wide = tokens.slopes.logsum_N.dtype
    grad_MD = torch.zeros_like(tokens.hidden_MD, dtype=wide) if needed[0] else None
    grad_VD = torch.empty_like(weight_VD) if needed[1] else None
    grad_V = torch.zeros_like(bias_V, dtype=wide) if needed[2] else None
    chunks = options.cut.rows(len(tokens.targets_M))
    tiles = _tiles(weight_VD, bias_V, options)
    for columns in parts(len(weight_VD), options.cut.columns):
        grad_WD = None if grad_VD is None else _Sum(grad_VD[columns], len(chunks))
        for rows in chunks:
            hidden_CD = tokens.hidden_MD[rows]
            grad_CW = tiles.gradient(hidden_CD, tokens.targets_M[rows], tokens.slopes.rows(rows), columns)
            if grad_MD is not None:
                _add_product(grad_MD[rows], grad_CW, weight_VD[columns])
            if grad_WD is not None:
                grad_WD.add(grad_CW.T, hidden_CD)
            if grad_V is not None:
                grad_V[columns] += grad_CW.sum(0)
    return grad_MD, grad_VD, grad_V


class _LogitLogProbs(torch.autograd.Function):  # type: ignore[misc]  # mypy does not follow torch
    @staticmethod
    def forward(
        ctx: Any,  # Any: autograd's context
        logits_NV: Tensor,
        targets_N: Tensor,
        temperature: float,
        entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        seen = []
        for rows in _rows_of(logits_NV):
            logits_CV = _scaled(logits_NV[rows], temperature)
            seen.append(totals_of(logits_CV, torch.empty_like(logits_CV), targets_N[rows], entropy=entropy))
        totals = Totals(*map(torch.cat, zip(*seen, strict=True)))
        logprobs_N, entropy_N, logsum_N = results(totals, entropy)
        ctx.save_for_backward(logits_NV, targets_N, logsum_N, entropy_N)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]  # the same
    def backward(
        ctx: Any,  # Any: autograd's context
        grad_N: Tensor | None,
        grad_entropy_N: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        logits_NV, targets_N, logsum_N, entropy_N = ctx.saved_tensors
        slopes = slopes_of(grad_N, grad_entropy_N, logsum_N, entropy_N, ctx.temperature)
        grad_NV = torch.empty_like(logits_NV)
        for rows in _rows_of(logits_NV):
            logits_CV = _scaled(logits_NV[rows], ctx.temperature)
            grad_NV[rows] = gradient_of(logits_CV, torch.empty_like(logits_CV), targets_N[rows], slopes.rows(rows))
        return grad_NV, None, None, None


class _Sum:
    """A sum of products that ends in `total`; fp32 until it is complete, unless one product is all."""

    def __init__(self, total_WD: Tensor, num_terms: int) -> None:
        self._total_WD, self._left = total_WD, num_terms
        is_one = num_terms == 1
        self._wide_WD = None if is_one else torch.zeros_like(total_WD, dtype=accurate(total_WD.dtype))

    def add(self, left_WC: Tensor, right_CD: Tensor) -> None:
        """One more product."""
        self._left -= 1
        if self._wide_WD is None:
            torch.mm(left_WC, right_CD, out=self._total_WD)
            return
        _add_product(self._wide_WD, left_WC, right_CD)
        if self._left == 0:
            self._total_WD.copy_(self._wide_WD)


def _tiles(weight_VD: Tensor, bias_V: Tensor | None, options: _Options) -> "Tiles | KernelTiles":
    """By Triton on a GPU where it runs; on a CPU where its own variable asks for its interpreter."""
    is_meant = weight_VD.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    if is_meant and weight_VD.dtype != torch.float64 and importlib.util.find_spec("triton") is not None:
        from lightrft_engines.head_kernels import KernelTiles, can_run

        if can_run():
            return KernelTiles(weight_VD, bias_V, options.temperature)
    return Tiles(weight_VD, bias_V, options.temperature, options.cut)


def cut_of(weight_VD: Tensor, num_tokens: int, chunk: int | None) -> Cut:
    """Tiles for so many tokens, none of them of more than `chunk`."""
    is_cpu = weight_VD.device.type == "cpu"
    most, tile = (CPU_TOKENS, CPU_TILE) if is_cpu else (GPU_TOKENS, GPU_TILE)
    tokens = max(1, min(num_tokens, chunk or most))
    columns = tile // max(1, min(num_tokens, most)) // GRAIN * GRAIN
    return Cut(tokens, max(1, min(len(weight_VD), MAX_COLUMNS, columns)))


def results(totals: Totals, entropy: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """Log-probabilities, entropies, and the logarithm of the sum of exponentials."""
    log_mass_N = totals.mass_N.log()
    entropy_N = log_mass_N - totals.pull_N / totals.mass_N if entropy else None
    return totals.target_N - totals.top_N - log_mass_N, entropy_N, totals.top_N + log_mass_N


def slopes_of(
    grad_N: Tensor | None, grad_entropy_N: Tensor | None, logsum_N: Tensor, entropy_N: Tensor | None, temperature: float
) -> Slopes:
    """d/dz of log p_y is 1[v = y] - p_v; of the entropy H it is -p_v (log p_v + H)."""
    hit_N = torch.zeros_like(logsum_N) if grad_N is None else grad_N / temperature
    if grad_entropy_N is None or entropy_N is None:
        return Slopes(logsum_N, hit_N, -hit_N, None)
    pull_N = grad_entropy_N / temperature
    return Slopes(logsum_N, hit_N, -hit_N - pull_N * entropy_N, pull_N)


def _add_product(total_WD: Tensor, left_WC: Tensor, right_CD: Tensor) -> None:
    if total_WD.dtype == left_WC.dtype:
        total_WD.addmm_(left_WC, right_CD)
    else:
        total_WD += left_WC @ right_CD


def _rows_of(logits_NV: Tensor) -> list[slice]:
    tile = CPU_TILE if logits_NV.device.type == "cpu" else GPU_TILE
    return Cut(max(1, tile // logits_NV.shape[1]), logits_NV.shape[1]).rows(len(logits_NV))


def _scaled(logits_CV: Tensor, temperature: float) -> Tensor:
    wide_CV = logits_CV.to(accurate(logits_CV.dtype), copy=True)
    return wide_CV if temperature == 1.0 else wide_CV.mul_(1.0 / temperature)
