"""How weights follow from gradients: what every rule can do, and AdamW. A rule updates some of a role's masters."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from lightrft_core.sections import LearningSection
from torch import Tensor, nn

from lightrft_engines.training.resting import Shelves

MOMENTS = ("exp_avg", "exp_avg_sq")
Named = Mapping[str, Tensor]


class Rule(Protocol):
    """Updates masters by the gradients that they carry."""

    def step(self, lr: float) -> None:
        """One update; all ranks call it together."""

    def state(self) -> dict[str, Tensor]:
        """This rank's part of what a resumed run needs, by `kind.name`; zeros before the first step."""

    def load(self, state: Named, num_steps: int) -> None:
        """Go on from there, after `num_steps` steps."""

    def shelves(self) -> Shelves:
        """Where its tensors lie now, to be changed: for each parameter by name, or for all of them."""


class Spread(Protocol):
    """Between a rank's part of a tensor and the whole one: what `placed.Placed` does."""

    @property
    def module(self) -> nn.Module:
        """The module; its parameters know the whole shapes."""

    def whole(self, name: str, own: Tensor) -> Tensor:
        """See `placed.Placed.whole`."""

    def part(self, name: str, whole: Tensor) -> Tensor:
        """See `placed.Placed.part`."""


class AdamW:
    """torch's own, fused. Matrices decay; norms and biases, which are vectors, do not."""

    def __init__(self, masters: Named, optim: LearningSection) -> None:
        self._masters = dict(masters)
        groups = decay_groups(list(masters.values()), optim.weight_decay)
        fused = {master.device.type for master in masters.values()} <= {"cpu", "cuda"}
        self._adamw = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=fused)

    def step(self, lr: float) -> None:
        """One update."""
        set_rate(self._adamw, lr)
        self._adamw.step()

    def state(self) -> dict[str, Tensor]:
        """Both moments of every parameter."""
        found = {}
        for name, master in self._masters.items():
            state = self._adamw.state.get(master, {})
            for moment in MOMENTS:
                found[f"{moment}.{name}"] = state.get(moment, torch.zeros_like(master, requires_grad=False))
        return found

    def shelves(self) -> Shelves:
        """Both moments of each parameter, once there was a step."""
        return {name: self._adamw.state[master] for name, master in self._masters.items()}

    def load(self, state: Named, num_steps: int) -> None:
        """Take the moments back."""
        self._adamw.state.clear()
        for name, master in self._masters.items() if num_steps else ():
            device = master.device if master.device.type == "cuda" else torch.device("cpu")
            own = {moment: state[f"{moment}.{name}"].to(master.device).clone() for moment in MOMENTS}
            self._adamw.state[master] = {"step": torch.tensor(float(num_steps), device=device), **own}


def decay_groups(masters: Sequence[Tensor], weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; norms and biases, which are vectors, do not."""
    matrices = [master for master in masters if master.ndim > 1]
    vectors = [master for master in masters if master.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Make it the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr
