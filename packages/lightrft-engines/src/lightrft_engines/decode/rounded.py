"""A module's twin whose linear layers hold 8-bit weights, with a scale for each row; inputs are rounded token by token.

    y = s_x s_w (round(x / s_x) . round(w / s_w))        s = largest magnitude of a row / 127

Everything else is shared with the module, parameters included. The output layer stays whole: its errors would go
straight into the log-probabilities.
"""

import copy
from collections import Counter
from collections.abc import Collection

import torch
from torch import Tensor, nn

LEVELS = 127
SMALLEST = 1e-30  # a row of zeros has a scale too


class RoundedLinear(nn.Module):  # type: ignore[misc]  # mypy does not follow torch
    """A linear layer whose weight was rounded when it was taken; the bias is the layer's own."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.bias = layer.bias
        weight_NK, scales_N = rounded(layer.weight.detach())
        self.register_buffer("weight_NK", weight_NK, persistent=False)
        self.register_buffer("scales_N", scales_N, persistent=False)

    def take(self, weight_NK: Tensor) -> None:
        """Round a new weight."""
        values_NK, scales_N = rounded(weight_NK)
        self.weight_NK.copy_(values_NK)
        self.scales_N.copy_(scales_N)

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., K] -> [..., N], in the numbers of the inputs."""
        rows_MK = inputs.reshape(-1, inputs.shape[-1]).float()
        values_MK, scales_M = rounded(rows_MK)
        outputs_MN = torch._int_mm(values_MK, self.weight_NK.t()) * scales_M.unsqueeze(-1)
        outputs_MN.mul_(self.scales_N)
        if self.bias is not None:
            outputs_MN.add_(self.bias)
        return outputs_MN.to(inputs.dtype).view(*inputs.shape[:-1], -1)


def rounded(rows_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Values [M, K] from -127 to 127 and scales [M], whose products are nearest to the rows."""
    rows_MK = rows_MK.float()
    scales_M1 = rows_MK.abs().amax(-1, keepdim=True).mul_(1 / LEVELS).clamp_min_(SMALLEST)
    return (rows_MK / scales_M1).round_().to(torch.int8), scales_M1.squeeze(-1)


def rounded_twin(module: nn.Module) -> tuple[nn.Module, dict[str, RoundedLinear]]:
    """The twin, and its rounded layers by the names of their weights.

    Linear layers outside of the output layer are rounded, but for those that share their weight with another.
    """
    head = module.get_output_embeddings()
    uses = Counter(id(value) for _, value in module.named_parameters(remove_duplicate=False))
    kept = {id(layer) for layer in module.modules() if layer is head or not _is_plain(layer, uses)}
    twins: dict[int, nn.Module] = {}
    twin = _twin(module, kept, twins)
    layers = {f"{name}.weight": layer for name, layer in twin.named_modules() if isinstance(layer, RoundedLinear)}
    return twin, layers


def _is_plain(layer: nn.Module, uses: Counter[int]) -> bool:
    return type(layer) is nn.Linear and uses[id(layer.weight)] == 1


def _twin(module: nn.Module, kept: Collection[int], twins: dict[int, nn.Module]) -> nn.Module:
    if id(module) not in twins:
        if id(module) in kept:
            twin = copy.copy(module)
            twins[id(module)] = twin
            twin._modules = {
                name: child if child is None else _twin(child, kept, twins) for name, child in module._modules.items()
            }
        elif isinstance(module, nn.Linear):
            twins[id(module)] = RoundedLinear(module)
    return twins[id(module)]
