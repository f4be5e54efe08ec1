"""Logits of some tokens over a part of the vocabulary, used and forgotten: the Triton form, for GPUs.

The same two questions as `head_tiles.Tiles`. Tiles of logits live in registers: the forward pass goes through the
vocabulary with an online softmax and writes four numbers per token and span; the backward pass writes the gradient of
one part of the vocabulary, for two matrix products of cuBLAS. Upper-case names in kernels are known when they compile.
"""

import logging
import subprocess
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightrft_engines.head_tiles import FLOOR, Slopes, Totals

log = logging.getLogger(__name__)
ROWS, COLUMNS = 128, 128  # tokens and entries of the vocabulary of a tile
SPAN = 16 * COLUMNS  # entries that one program of the forward pass goes through
DEPTH_BYTES = 128  # of a row of hidden states or weights that is read at one time
WARPS, MAX_STAGES = 8, 4
SCRATCH_BYTES = 16 << 10  # of a processor's shared memory, left for reductions
LOWEST = tl.constexpr(FLOOR)


@triton.jit  # type: ignore[untyped-decorator]  # mypy does not follow triton
def _tile(
    hidden: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    num_tokens: int,
    num_columns: int,
    width: int,
    hidden_stride: int,
    weight_stride: int,
    scale: float,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> tl.tensor:
    """Logits over the temperature; -inf past the vocabulary."""
    logits = tl.zeros([ROWS, COLUMNS], tl.float32)
    hidden_rows = hidden + rows.to(tl.int64)[:, None] * hidden_stride
    weight_rows = weight + columns.to(tl.int64)[None, :] * weight_stride
    for start in range(0, width, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        inside = depth < width
        left = tl.load(hidden_rows + depth[None, :], (rows < num_tokens)[:, None] & inside[None, :], 0.0)
        right = tl.load(weight_rows + depth[:, None], (columns < num_columns)[None, :] & inside[:, None], 0.0)
        logits = tl.dot(left, right, logits, input_precision=PRECISION)
    if HAS_BIAS:
        logits += tl.load(bias + columns, columns < num_columns, 0.0).to(tl.float32)[None, :]
    return tl.where((columns < num_columns)[None, :], logits * scale, float("-inf"))


@triton.jit  # type: ignore[untyped-decorator]  # mypy does not follow triton
def totals_kernel(
    hidden: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    targets: tl.tensor,
    tops: tl.tensor,
    masses: tl.tensor,
    pulls: tl.tensor,
    hits: tl.tensor,
    num_tokens: int,
    num_columns: int,
    width: int,
    hidden_stride: int,
    weight_stride: int,
    scale: float,
    HAS_BIAS: tl.constexpr,
    ENTROPY: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SPAN: tl.constexpr,
) -> None:
    """`Totals` of a block of tokens over one span of the vocabulary."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    target = tl.load(targets + rows, rows < num_tokens, -1)
    top = tl.full([ROWS], LOWEST, tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    pull = tl.zeros([ROWS], tl.float32)
    hit = tl.full([ROWS], float("-inf"), tl.float32)
    first = tl.program_id(1) * SPAN
    for start in range(first, min(first + SPAN, num_columns), COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        logits = _tile(
            hidden, weight, bias, rows, columns, num_tokens, num_columns, width, hidden_stride, weight_stride, scale,
            HAS_BIAS, PRECISION, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip
        hit = tl.maximum(hit, tl.max(tl.where(columns[None, :] == target[:, None], logits, float("-inf")), 1))
        higher = tl.maximum(top, tl.max(logits, 1))
        fade = tl.exp(top - higher)
        shifted = logits - higher[:, None]
        odds = tl.exp(shifted)
        if ENTROPY:
            own = tl.sum(tl.where((columns < num_columns)[None, :], odds * shifted, 0.0), 1)
            pull = fade * (pull + mass * (top - higher)) + own
        mass = fade * mass + tl.sum(odds, 1)
        top = higher
    place = tl.program_id(1).to(tl.int64) * num_tokens + rows
    tl.store(tops + place, top, rows < num_tokens)
    tl.store(masses + place, mass, rows < num_tokens)
    tl.store(pulls + place, pull, rows < num_tokens)
    tl.store(hits + place, hit, rows < num_tokens)


@triton.jit  # type: ignore[untyped-decorator]  # mypy does not follow triton
def gradient_kernel(
    hidden: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    targets: tl.tensor,
    logsums: tl.tensor,
    hits: tl.tensor,
    pushes: tl.tensor,
    pulls: tl.tensor,
    gradients: tl.tensor,
    num_tokens: int,
    num_columns: int,
    width: int,
    hidden_stride: int,
    weight_stride: int,
    scale: float,
    HAS_BIAS: tl.constexpr,
    ENTROPY: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """See `head_tiles.Slopes`."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    logits = _tile(
        hidden, weight, bias, rows, columns, num_tokens, num_columns, width, hidden_stride, weight_stride, scale,
        HAS_BIAS, PRECISION, ROWS, COLUMNS, DEPTH,
    )  # fmt: skip
    is_token = rows < num_tokens
    logp = logits - tl.load(logsums + rows, is_token, 0.0)[:, None]
    slope = tl.load(pushes + rows, is_token, 0.0)[:, None]
    if ENTROPY:
        slope = slope - tl.load(pulls + rows, is_token, 0.0)[:, None] * logp
    target = tl.load(targets + rows, is_token, -1)
    hit = tl.load(hits + rows, is_token, 0.0)[:, None]
    gradient = tl.exp(logp) * slope + tl.where(columns[None, :] == target[:, None], hit, 0.0)
    place = gradients + rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
    tl.store(place, gradient.to(gradients.dtype.element_ty), is_token[:, None] & (columns < num_columns)[None, :])


@cache
def can_run() -> bool:
    """Whether Triton drives this machine's GPU; it builds its driver with a C compiler and Python's headers."""
    if triton.knobs.runtime.interpret:
        return True
    try:
        triton.runtime.driver.active.get_current_target()
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        log.warning("Triton does not run here, so torch computes the log-probabilities: %s", error)
        return False
    return True


class KernelTiles:
    """The two kernels on one head."""

    def __init__(self, weight_VD: Tensor, bias_V: Tensor | None, temperature: float) -> None:
        self._weight_VD = weight_VD if weight_VD.stride(1) == 1 else weight_VD.contiguous()
        self._bias_V, self._scale = bias_V, 1.0 / temperature

    def totals(self, hidden_ND: Tensor, targets_N: Tensor, *, entropy: bool) -> Totals:
        """See `head_tiles.Tiles.totals`."""
        spans = max(1, triton.cdiv(len(self._weight_VD), SPAN))
        parts_SN = [hidden_ND.new_empty(spans, len(hidden_ND), dtype=torch.float32) for _ in Totals._fields]
        grid = (triton.cdiv(len(hidden_ND), ROWS), spans)
        self._launch(totals_kernel, grid, hidden_ND, self._weight_VD, self._bias_V, [targets_N, *parts_SN],
                     ENTROPY=entropy, SPAN=SPAN)  # fmt: skip
        return Totals(*parts_SN).merged()

    def gradient(self, hidden_CD: Tensor, targets_C: Tensor, slopes: Slopes, columns: slice) -> Tensor:
        """See `head_tiles.Tiles.gradient`."""
        weight_WD = self._weight_VD[columns]
        grad_CW = torch.empty(len(hidden_CD), len(weight_WD), dtype=weight_WD.dtype, device=weight_WD.device)
        pull_C = slopes.push_N if slopes.pull_N is None else slopes.pull_N  # a pointer that is then not read
        per_token = [targets_C - columns.start, slopes.logsum_N, slopes.hit_N, slopes.push_N, pull_C]
        grid = (triton.cdiv(len(hidden_CD), ROWS), triton.cdiv(len(weight_WD), COLUMNS))
        bias_W = None if self._bias_V is None else self._bias_V[columns]
        self._launch(gradient_kernel, grid, hidden_CD, weight_WD, bias_W, [*per_token, grad_CW],
                     ENTROPY=slopes.pull_N is not None)  # fmt: skip
        return grad_CW

    def _launch(
        self,
        kernel: triton.JITFunction,
        grid: tuple[int, int],
        hidden_ND: Tensor,
        weight_WD: Tensor,
        bias_W: Tensor | None,
        others: list[Tensor],
        **known: int,
    ) -> None:
        hidden_ND = hidden_ND if hidden_ND.stride(1) == 1 else hidden_ND.contiguous()
        bias = weight_WD if bias_W is None else bias_W  # a pointer that is then not read
        sizes = (len(hidden_ND), *weight_WD.shape, hidden_ND.stride(0), weight_WD.stride(0))
        with torch.cuda.device_of(weight_WD):
            kernel[grid](
                hidden_ND, weight_WD, bias, *(other.contiguous() for other in others), *sizes, self._scale,
                HAS_BIAS=bias_W is not None, **shape_of(weight_WD), **known,
            )  # fmt: skip


def shape_of(weight_VD: Tensor) -> dict[str, int | str]:
    """Tile sizes and launch options for a weight's numbers and its GPU."""
    depth = DEPTH_BYTES // weight_VD.element_size()
    precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"  # of fp32; as torch's own products
    shape: dict[str, int | str] = {"PRECISION": precision, "ROWS": ROWS, "COLUMNS": COLUMNS, "DEPTH": depth}
    if not weight_VD.is_cuda:
        return shape
    shared_bytes = triton.compiler.max_shared_mem(weight_VD.get_device())
    return {**shape, "num_warps": WARPS, "num_stages": stages_of(shared_bytes)}


def stages_of(shared_bytes: int) -> int:
    """Reads that are under way at one time: what a processor's shared memory holds."""
    return max(1, min(MAX_STAGES, (shared_bytes - SCRATCH_BYTES) // ((ROWS + COLUMNS) * DEPTH_BYTES)))
