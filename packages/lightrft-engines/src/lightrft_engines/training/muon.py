"""Muon: the average of gradients, made orthogonal, for the matrices of a model's blocks.

    M = mu M + (1 - mu) G,   U = NS(G + mu (M - G)) with Nesterov, else NS(M),   W = W - lr (wd W + ratio U)

NS is a Newton-Schulz iteration, `ratio` follows the matrix's shape (arXiv:2502.16982). Averages are entry by entry and
stay in shards; only what is made orthogonal is gathered, one matrix at a time, and each rank keeps its part.
"""

import torch
from lightrft_core.sections import LearningSection, MuonSection
from torch import Tensor

from lightrft_engines.training.resting import Shelves
from lightrft_engines.training.rules import Named, Spread

KIND = "momentum_buffer"


class Muon:
    """`rules.Rule` for matrices."""

    def __init__(self, masters: Named, optim: LearningSection, spread: Spread) -> None:
        self._masters, self._optim, self._spread = dict(masters), optim, spread
        self._averages = {name: torch.zeros_like(master, requires_grad=False) for name, master in masters.items()}

    def step(self, lr: float) -> None:
        """One update; each matrix is gathered on the model's device."""
        options = self._optim.muon or MuonSection()
        with torch.no_grad():
            for name, master in self._masters.items():
                gradient, average = master.grad, self._averages[name]
                average.lerp_(gradient, 1.0 - options.momentum)
                update = gradient.lerp(average, options.momentum) if options.nesterov else average
                device = self._spread.module.get_parameter(name).device
                whole = self._spread.whole(name, update.to(device))
                change = self._spread.part(name, orthogonal_step(whole, lr, options))
                master.mul_(1.0 - lr * self._optim.weight_decay).add_(change.to(master.device))

    def state(self) -> dict[str, Tensor]:
        """The averages."""
        return {f"{KIND}.{name}": average for name, average in self._averages.items()}

    def shelves(self) -> Shelves:
        """All averages."""
        return {KIND: self._averages}

    def load(self, state: Named, num_steps: int) -> None:
        """Take them back."""
        for name, average in self._averages.items():
            average.copy_(state[f"{KIND}.{name}"])


def orthogonal_step(update: Tensor, lr: float, options: MuonSection) -> Tensor:
    """What torch's Muon adds to a matrix of zeros: the orthogonalised update times the rate for its shape."""
    step = torch.zeros_like(update)
    step.grad = update
    bare = {"weight_decay": 0.0, "momentum": 0.0, "nesterov": False}  # averages and decay are done shard by shard
    torch.optim.Muon([step], lr=lr, ns_steps=options.ns_steps, adjust_lr_fn=options.adjust_lr_fn, **bare).step()
    step.grad = None
    return step
