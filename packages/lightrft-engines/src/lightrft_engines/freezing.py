"""Parameters that stay as they are: a run names the first parts of their names, and they take no gradient.

Dots divide a name into parts: `model.layers.1` names `model.layers.1.mlp.up_proj.weight`, and nothing of layer 10.
"""

import logging
from collections.abc import Iterable, Sequence

from lightrft_core.errors import UserError
from lightrft_core.suggest import did_you_mean
from torch import nn

log = logging.getLogger(__name__)
WHERE = "model.freeze"


def freeze(module: nn.Module, prefixes: Sequence[str]) -> None:
    """Switch the named parameters off; all others keep their marks.

    `UserError` where a prefix names none, where a tied weight is named by some of its names alone, and where nothing
    would be left to learn.
    """
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    _require_found(prefixes, [name for all_names in names.values() for name in all_names])
    frozen = [parameter for parameter, all_names in names.items() if _is_frozen(all_names, prefixes)]
    if not any(parameter.requires_grad for parameter in names.keys() - set(frozen)):
        raise UserError(
            "it names every parameter, so the policy would learn nothing.",
            where=WHERE,
            hint="Leave out the parts that are to learn.",
        )
    for parameter in frozen:
        parameter.requires_grad_(False)
    num, total = (sum(parameter.numel() for parameter in found) for found in (frozen, names))
    log.info("model.freeze: %s of the policy's %s parameters stay as they are", f"{num:,}", f"{total:,}")


def _is_frozen(names: Sequence[str], prefixes: Sequence[str]) -> bool:
    """Whether a parameter is, by all the names that it has."""
    named = [name for name in names if any(_starts(name, prefix) for prefix in prefixes)]
    others = [name for name in names if name not in named]
    if named and others:
        raise UserError(
            f"{named[0]} and {others[0]} are one weight: it cannot learn as the one and stay as the other.",
            where=WHERE,
            hint=f"Name {others[0]!r} too, or neither of them.",
        )
    return bool(named)


def _require_found(prefixes: Iterable[str], names: Sequence[str]) -> None:
    for prefix in prefixes:
        if not any(_starts(name, prefix) for name in names):
            raise UserError(
                f"the model has no parameter whose name starts with the parts {prefix!r}.",
                where=WHERE,
                hint=_meant(prefix, names),
            )


def _meant(prefix: str, names: Iterable[str]) -> str:
    """One that ends so, else the nearest; of parts that are numbered alike the first stands for the others."""
    given = prefix.split(".")
    starts: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        if all(not part.isdigit() or part == "0" or part in given for part in parts):
            starts |= dict.fromkeys(".".join(parts[:num]) for num in range(1, len(parts) + 1))
    inner = next((start for start in starts if start.endswith(f".{prefix}")), None)
    return f"Did you mean {inner!r}?" if inner is not None else did_you_mean(prefix, list(starts))


def _starts(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(f"{prefix}.")
