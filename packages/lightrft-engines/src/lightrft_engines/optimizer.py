"""AdamW over a module's trained parameters: summed gradients in one flat buffer, master weights, exact state.

Gradients of micro-batches add up in the buffer, in fp32 whatever the model computes with; ranks add up in one
all-reduce of it; norm, clipping and the test for non-finite values see it whole, so that all ranks agree.
"""

from collections.abc import Mapping

import torch
from lightrft_core.protocols import World
from lightrft_core.sections import LearningSection
from torch import Tensor, nn

from lightrft_engines.world import add_over_ranks

MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """One step is `begin`, backward passes each followed by `absorb`, `reduce`, `apply` or nothing, `end`."""

    def __init__(self, module: nn.Module, optim: LearningSection) -> None:
        self._optim = optim
        trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        self._names = [name for name, _ in trained]
        self._parameters = [parameter for _, parameter in trained]
        self._masters = [_master(parameter) for parameter in self._parameters]
        self._buffer = torch.empty(0)
        self._adamw = torch.optim.AdamW(
            _decay_groups(self._masters, optim.weight_decay),
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            fused=self._masters[0].device.type in ("cpu", "cuda"),
        )

    def begin(self) -> None:
        """Zero gradients, as views of one buffer."""
        total = sum(master.numel() for master in self._masters)
        self._buffer = torch.zeros(total, dtype=self._masters[0].dtype, device=self._masters[0].device)
        start = 0
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            master.grad = self._buffer[start : start + master.numel()].view_as(master)
            start += master.numel()
            if parameter is not master:
                parameter.grad = None

    def absorb(self) -> None:
        """Add low-precision gradients of the last backward pass to the buffer."""
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            if parameter is not master and parameter.grad is not None and master.grad is not None:
                master.grad += parameter.grad
                parameter.grad = None

    def reduce(self, world: World) -> float:
        """Add gradients over ranks; the global norm of what was added up, the same on every rank."""
        add_over_ranks(self._buffer, world)
        return float(torch.linalg.vector_norm(self._buffer, dtype=torch.float64))

    def apply(self, lr: float, norm: float) -> None:
        """Clip by the global norm, step, and hand masters to the model."""
        if self._optim.max_grad_norm > 0 and norm > self._optim.max_grad_norm:
            self._buffer *= self._optim.max_grad_norm / norm
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            if parameter is not master:
                parameter.data.copy_(master)

    def end(self) -> None:
        """Free the gradients."""
        self._buffer = torch.empty(0)
        for tensor in (*self._parameters, *self._masters):
            tensor.grad = None

    def weights(self) -> dict[str, Tensor]:
        """The trained parameters in full precision."""
        return dict(zip(self._names, self._masters, strict=True))

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take parameters back, into masters and model."""
        with torch.no_grad():
            for name, parameter, master in zip(self._names, self._parameters, self._masters, strict=True):
                master.copy_(weights[name])
                parameter.data.copy_(master)

    def moments(self) -> dict[str, Tensor]:
        """AdamW's two moments of every parameter; zeros before the first step."""
        found = {}
        for name, master in zip(self._names, self._masters, strict=True):
            state = self._adamw.state.get(master, {})
            for moment in MOMENTS:
                found[f"{moment}.{name}"] = state.get(moment, torch.zeros_like(master))
        return found

    def load_moments(self, moments: Mapping[str, Tensor], num_steps: int) -> None:
        """Take the moments after `num_steps` applied steps back."""
        self._adamw.state.clear()
        if num_steps == 0:
            return
        for name, master in zip(self._names, self._masters, strict=True):
            device = master.device if master.device.type == "cuda" else torch.device("cpu")
            state = {moment: moments[f"{moment}.{name}"].to(master.device).clone() for moment in MOMENTS}
            self._adamw.state[master] = {"step": torch.tensor(float(num_steps), device=device), **state}


def _master(parameter: nn.Parameter) -> Tensor:
    if parameter.dtype in (torch.float32, torch.float64):
        return parameter
    return parameter.detach().float().requires_grad_()


def _decay_groups(masters: list[Tensor], weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; norms and biases, which are vectors, do not."""
    matrices = [master for master in masters if master.ndim > 1]
    vectors = [master for master in masters if master.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
