"""AdamW over master weights: fp32 where the model computes with less, the parameters themselves otherwise.

A sharded model's masters are the shards of this rank; nothing here knows the difference.
"""

from collections.abc import Mapping, Sequence

import torch
from lightrft_core.sections import LearningSection
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """Updates `masters`, and the model's `parameters` with them. Names are those of the model."""

    def __init__(
        self,
        names: Sequence[str],
        parameters: Sequence[Tensor],
        masters: Sequence[Tensor],
        optim: LearningSection,
    ) -> None:
        self._optim, self.names = optim, list(names)
        self._parameters, self.masters = list(parameters), list(masters)
        self._adamw = torch.optim.AdamW(
            _decay_groups(self.masters, optim.weight_decay),
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            fused=self.masters[0].device.type in ("cpu", "cuda"),
        )

    def apply(self, lr: float, gradients: Sequence[Tensor], norm: float) -> None:
        """Clip by the global norm, step, and hand masters to the model."""
        is_clipped = 0 < self._optim.max_grad_norm < norm
        for master, gradient in zip(self.masters, gradients, strict=True):
            master.grad = gradient.mul_(self._optim.max_grad_norm / norm) if is_clipped else gradient
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        for parameter, master in zip(self._parameters, self.masters, strict=True):
            master.grad = None
            if parameter is not master:
                parameter.data.copy_(master)

    def weights(self) -> dict[str, Tensor]:
        """The trained parameters in full precision."""
        return dict(zip(self.names, self.masters, strict=True))

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take parameters back, into masters and model."""
        with torch.no_grad():
            for name, parameter, master in zip(self.names, self._parameters, self.masters, strict=True):
                master.copy_(weights[name])
                parameter.data.copy_(master)

    def moments(self) -> dict[str, Tensor]:
        """AdamW's two moments of every parameter; zeros before the first step."""
        found = {}
        for name, master in zip(self.names, self.masters, strict=True):
            state = self._adamw.state.get(master, {})
            for moment in MOMENTS:
                found[f"{moment}.{name}"] = state.get(moment, torch.zeros_like(master, requires_grad=False))
        return found

    def load_moments(self, moments: Mapping[str, Tensor], num_steps: int) -> None:
        """Take the moments after `num_steps` applied steps back."""
        self._adamw.state.clear()
        if num_steps == 0:
            return
        for name, master in zip(self.names, self.masters, strict=True):
            device = master.device if master.device.type == "cuda" else torch.device("cpu")
            state = {moment: moments[f"{moment}.{name}"].to(master.device).clone() for moment in MOMENTS}
            self._adamw.state[master] = {"step": torch.tensor(float(num_steps), device=device), **state}


def master_of(parameter: nn.Parameter) -> Tensor:
    """The parameter itself in full precision; a copy of it otherwise."""
    if parameter.dtype in (torch.float32, torch.float64):
        return parameter
    return parameter.detach().float().requires_grad_()


def _decay_groups(masters: Sequence[Tensor], weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; norms and biases, which are vectors, do not."""
    matrices = [master for master in masters if master.ndim > 1]
    vectors = [master for master in masters if master.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
