"""One update of a role's weights: clip, step, and hand the masters to the model.

Masters are fp32 where the model computes with less, or where they live elsewhere, and the parameters themselves
otherwise. A sharded model's masters are the shards of this rank; nothing here knows the difference.
"""

from collections.abc import Mapping, Sequence

import torch
from lightrft_core.sections import LearningSection
from torch import Tensor, nn

from lightrft_engines.training.eight_bit import EightBitAdamW
from lightrft_engines.training.muon import Muon
from lightrft_engines.training.resting import Resting, Shelves, own_masters
from lightrft_engines.training.rules import AdamW, Named, Rule, Spread

SMALLEST = 4096  # entries of a tensor for whose moments 8 bits are worth their scales


class Optimizer:
    """Updates `masters` by `rules`, and the model's `parameters` with them. Names are those of the model."""

    def __init__(
        self,
        names: Sequence[str],
        parameters: Sequence[Tensor],
        masters: Sequence[Tensor],
        rules: Sequence[Rule],
        max_grad_norm: float,
    ) -> None:
        self.names, self._parameters, self.masters = list(names), list(parameters), list(masters)
        self._rules, self._max_grad_norm = list(rules), max_grad_norm

    def apply(self, lr: float, gradients: Sequence[Tensor], norm: float) -> None:
        """Clip by the global norm, step, and hand masters to the model."""
        is_clipped = 0 < self._max_grad_norm < norm
        for master, gradient in zip(self.masters, gradients, strict=True):
            clipped = gradient.mul_(self._max_grad_norm / norm) if is_clipped else gradient
            master.grad = clipped.to(master.device)
        for rule in self._rules:
            rule.step(lr)
        for parameter, master in zip(self._parameters, self.masters, strict=True):
            master.grad = None
            if parameter is not master:
                parameter.data.copy_(master)

    def resting(self, away: torch.device) -> Resting:
        """What may leave the model's device between updates: what rules keep, and masters of their own."""
        home = self._parameters[0].device

        def shelves() -> Shelves:
            return {name: shelf for rule in self._rules for name, shelf in rule.shelves().items()}

        return Resting(shelves, own_masters(self.names, self.masters, self._parameters), home, away)

    def weights(self) -> dict[str, Tensor]:
        """The trained parameters in full precision."""
        return dict(zip(self.names, self.masters, strict=True))

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take parameters back, into masters and model."""
        with torch.no_grad():
            for name, parameter, master in zip(self.names, self._parameters, self.masters, strict=True):
                master.copy_(weights[name])
                parameter.data.copy_(master)

    def state(self) -> dict[str, Tensor]:
        """What the rules keep of every parameter, by `kind.name`; zeros before the first step."""
        return {key: tensor for rule in self._rules for key, tensor in rule.state().items()}

    def load_state(self, state: Mapping[str, Tensor], num_steps: int) -> None:
        """Take back what they kept after `num_steps` applied steps."""
        for rule in self._rules:
            rule.load(state, num_steps)


def rules_for(optim: LearningSection, spread: Spread, masters: Named) -> list[Rule]:
    """The rules of a role's masters: what an optimizer is not made for goes to AdamW."""
    belongs = {"adamw": _never, "adamw_8bit": _is_large, "muon": _is_inner_matrix}[optim.optimizer]
    special = {name: master for name, master in masters.items() if belongs(spread.module, name)}
    rest = {name: master for name, master in masters.items() if name not in special}
    rules: list[Rule] = [AdamW(rest, optim)] if rest else []
    if special and optim.optimizer == "muon":
        rules.append(Muon(special, optim, spread))
    elif special:
        rules.append(EightBitAdamW(special, optim))
    return rules


def _never(module: nn.Module, name: str) -> bool:
    return False


def _is_large(module: nn.Module, name: str) -> bool:
    """By the whole tensor, so that it does not depend on how that lies over the ranks."""
    parameter: nn.Parameter = module.get_parameter(name)
    return bool(parameter.ndim > 1 and parameter.shape.numel() >= SMALLEST)


def _is_inner_matrix(module: nn.Module, name: str) -> bool:
    """A matrix of a block, which is one of several alike in a list. Embeddings and heads are outside of them."""
    if module.get_parameter(name).ndim != 2:
        return False
    lists = (path for path, part in module.named_modules() if isinstance(part, nn.ModuleList))
    return any(name.startswith(f"{path}.") for path in lists)


def master_of(parameter: nn.Parameter) -> Tensor:
    """The parameter itself in full precision; a copy of it otherwise."""
    if parameter.dtype in (torch.float32, torch.float64):
        return parameter
    return parameter.detach().float().requires_grad_()


def moved(master: Tensor, device: torch.device) -> Tensor:
    """A copy of a master that lives on another device; in pinned memory where a GPU exchanges data with the CPU."""
    pins = device.type == "cpu" and master.device.type == "cuda"
    own = torch.empty_like(master, device=device, pin_memory=pins, requires_grad=False)
    return own.copy_(master.detach()).requires_grad_()
