"""From hidden states to log-probabilities of given tokens, without ever holding all logits.

    log p(y | h) = z_y - log sum_v exp z_v,   z = (W h + b) / temperature
    entropy      = log sum_v exp z_v - sum_v p_v z_v

Logits exist for one chunk of tokens at a time, and are computed once more in the backward pass: on a CPU that costs no
more than writing and reading all of them. Letters: N tokens, C of a chunk, D hidden, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn

CPU_BYTES, GPU_BYTES = 4 << 20, 128 << 20  # of logits, where no chunk is given: on CPUs what their caches hold
MIN_CHUNK = 128  # fewer tokens would read a large head's weight more often than they use it


def token_logprobs(
    hidden_ND: Tensor,
    head: nn.Linear,
    targets_N: Tensor,
    temperature: float,
    *,
    entropy: bool = False,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target, and the entropy where asked for: [N], in fp32 (fp64 for an fp64 model).

    Both carry gradients to hidden states, weight and bias. `chunk` is the number of tokens whose logits exist at one
    time; by default as many as fit into a few MiB on a CPU, 128 MiB on a GPU.
    """
    logprobs_N, entropy_N = _TokenLogProbs.apply(
        hidden_ND, head.weight, head.bias, targets_N, temperature, entropy, chunk or _default_chunk(head.weight)
    )
    return logprobs_N, entropy_N


def logprobs_of_logits(
    logits_NV: Tensor, targets_N: Tensor, temperature: float, *, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The same from logits that a model computed in its own way."""
    logp_NV = (logits_NV.to(_accurate(logits_NV.dtype)) / temperature).log_softmax(-1)
    logprobs_N = logp_NV.gather(-1, targets_N[:, None]).squeeze(-1)
    return logprobs_N, -(logp_NV.exp() * logp_NV).sum(-1) if entropy else None


class _TokenLogProbs(torch.autograd.Function):  # type: ignore[misc]  # mypy does not follow torch
    @staticmethod
    def forward(
        ctx: Any,  # Any: autograd's context
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        temperature: float,
        entropy: bool,
        chunk: int,
    ) -> tuple[Tensor, Tensor | None]:
        logprobs_N = hidden_ND.new_empty(hidden_ND.shape[0], dtype=_accurate(weight_VD.dtype))
        logsum_N = torch.empty_like(logprobs_N)
        entropy_N = torch.empty_like(logprobs_N) if entropy else None
        head = _Head(weight_VD, bias_V, temperature, min(chunk, len(targets_N)))
        for part in _parts(len(targets_N), chunk):
            logits_CV, spare_CV = head.logits(hidden_ND[part])
            top_C1 = logits_CV.amax(-1, keepdim=True)
            logits_CV -= top_C1
            odds_CV = torch.exp(logits_CV, out=spare_CV)
            sum_C = odds_CV.sum(-1)
            log_sum_C = sum_C.log()
            logprobs_N[part] = logits_CV.gather(-1, targets_N[part, None]).squeeze(-1) - log_sum_C
            logsum_N[part] = log_sum_C + top_C1.squeeze(-1)
            if entropy_N is not None:
                entropy_N[part] = log_sum_C - odds_CV.mul_(logits_CV).sum(-1) / sum_C
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, logsum_N, entropy_N)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.set_materialize_grads(False)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(
        ctx: Any,  # Any: autograd's context
        grad_N: Tensor | None,
        grad_entropy_N: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N, logsum_N, entropy_N = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden_ND = torch.empty_like(hidden_ND) if needs_hidden else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=logsum_N.dtype) if needs_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=logsum_N.dtype) if needs_bias else None
        head = _Head(weight_VD, bias_V, ctx.temperature, min(ctx.chunk, len(targets_N)))
        for part in _parts(len(targets_N), ctx.chunk):
            logits_CV, spare_CV = head.logits(hidden_ND[part])
            logits_CV -= logsum_N[part, None]
            entropies = None if grad_entropy_N is None else (grad_entropy_N[part], entropy_N[part])
            grad_CV = _logit_gradient(logits_CV, spare_CV, targets_N[part], _part(grad_N, part), entropies)
            grad_CV = grad_CV.mul_(1.0 / ctx.temperature).to(weight_VD.dtype)
            if grad_hidden_ND is not None:
                torch.mm(grad_CV, weight_VD, out=grad_hidden_ND[part])
            if grad_weight_VD is not None:
                _add_product(grad_weight_VD, grad_CV.T, hidden_ND[part])
            if grad_bias_V is not None:
                grad_bias_V += grad_CV.sum(0)
        return (
            grad_hidden_ND,
            None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype),
            None if grad_bias_V is None else grad_bias_V.to(weight_VD.dtype),
            *[None] * 4,
        )


class _Head:
    """The output layer, into two buffers that every chunk uses again."""

    def __init__(self, weight_VD: Tensor, bias_V: Tensor | None, temperature: float, chunk: int) -> None:
        self._weight_VD, self._bias_V, self._temperature = weight_VD, bias_V, temperature
        self._accurate = _accurate(weight_VD.dtype)
        self._logits_CV = weight_VD.new_empty(chunk, weight_VD.shape[0], dtype=self._accurate)
        self._spare_CV = torch.empty_like(self._logits_CV)

    def logits(self, hidden_CD: Tensor) -> tuple[Tensor, Tensor]:
        """Logits over the temperature, and a spare buffer of their shape."""
        logits_CV, spare_CV = self._logits_CV[: len(hidden_CD)], self._spare_CV[: len(hidden_CD)]
        if hidden_CD.dtype == self._accurate:
            torch.mm(hidden_CD, self._weight_VD.T, out=logits_CV)
        else:
            logits_CV.copy_(hidden_CD @ self._weight_VD.T)
        if self._bias_V is not None:
            logits_CV += self._bias_V
        return (logits_CV if self._temperature == 1.0 else logits_CV.div_(self._temperature)), spare_CV


def _logit_gradient(
    logp_CV: Tensor, spare_CV: Tensor, targets_C: Tensor, grad_C: Tensor | None, entropies: tuple[Tensor, Tensor] | None
) -> Tensor:
    """d/dz of log p_y is 1[v = y] - p_v; of the entropy H it is -p_v (log p_v + H). Overwrites both buffers."""
    scale_C1 = torch.zeros_like(logp_CV[:, :1]) if grad_C is None else grad_C[:, None]
    probs_CV = torch.exp(logp_CV, out=spare_CV)
    if entropies is None:
        grad_CV = probs_CV.mul_(-scale_C1)
    else:
        pull_C1, entropy_C1 = entropies[0][:, None], entropies[1][:, None]
        grad_CV = logp_CV.add_(entropy_C1).mul_(-pull_C1).sub_(scale_C1).mul_(probs_CV)
    return grad_CV.scatter_add_(1, targets_C[:, None], scale_C1.to(grad_CV.dtype))


def _default_chunk(weight_VD: Tensor) -> int:
    limit = CPU_BYTES if weight_VD.device.type == "cpu" else GPU_BYTES
    row_bytes: int = weight_VD.shape[0] * _accurate(weight_VD.dtype).itemsize
    return max(MIN_CHUNK, limit // row_bytes)


def _add_product(total_VD: Tensor, left_VC: Tensor, right_CD: Tensor) -> None:
    if total_VD.dtype == left_VC.dtype:
        total_VD.addmm_(left_VC, right_CD)
    else:
        total_VD += left_VC @ right_CD


def _accurate(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _parts(num: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, num, chunk)]


def _part(values_N: Tensor | None, part: slice) -> Tensor | None:
    return None if values_N is None else values_N[part]
