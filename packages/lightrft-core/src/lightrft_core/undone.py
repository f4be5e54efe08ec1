"""Shapers whose work the advantage takes out again: a scale that it divides by, a shift that it subtracts.

What the user asked for is refused. What only the file asked for, beside an advantage of the command line, is left out
with a warning: the file meant another case.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lightrft_core.chosen import Chosen, any_needs
from lightrft_core.sections import Feature, KLSection

if TYPE_CHECKING:
    from lightrft_core.nodes import Node
    from lightrft_core.resolve import Resolver

logger = logging.getLogger(__name__)


def settle_undone(resolver: "Resolver") -> None:
    """Report or leave out every shaper, and every option of one, that does nothing in this run."""
    shapers = resolver.many["shapers"]
    found = dict(undone(shapers, resolver.one, resolver.many["selectors"]))
    nodes = resolver.tree.fields()["shapers"].items() if found else []
    if len(nodes) != len(shapers):
        return  # one of them was refused, and the others are looked at when that is mended
    is_overruled = _is_chosen_on_command_line(resolver.tree, "advantage")
    kept: list[Chosen] = []
    for place, (chosen, node) in enumerate(zip(shapers, nodes, strict=True)):
        reasons = found.get(place, {})
        if node.origin.layer == "file" and is_overruled:
            kept += _without(chosen, reasons)
            continue
        kept.append(chosen)
        for option, reason in reasons.items():
            at = node.child(option) if option else node
            if at is not None and at.origin.layer in ("file", "command"):
                key = f"shapers[{chosen.label}]" + (f".{option}" if option else "")
                resolver.report.add(key, at.key_origin, f"has no effect: {reason}", "Leave it out.")
    resolver.many["shapers"] = tuple(kept)


def undone(
    shapers: Sequence[Chosen], one: Mapping[str, Chosen | None], selectors: Sequence[Chosen]
) -> Iterator[tuple[int, Mapping[str, str]]]:
    """(place in the list, reasons by option) of the shapers that later parts take out again, from the last on."""
    ignored = _ignored(one["advantage"], one["kl"], selectors)
    for place, chosen in reversed(list(enumerate(shapers))):
        reasons = chosen.config.undone_by(ignored)
        if reasons:
            yield place, reasons
        if "" not in reasons:
            ignored = frozenset()  # this one looks at what those before it made


def _ignored(advantage: Chosen | None, kl: Chosen | None, selectors: Sequence[Chosen]) -> frozenset[Feature]:
    """What of the shaped rewards no later part sees. A KL in the rewards is weighed against their scale."""
    if advantage is None or any_needs("shaped_rewards", selectors):
        return frozenset()
    ignored = advantage.config.ignores()
    in_reward = kl is not None and isinstance(kl.config, KLSection) and kl.config.place == "reward"
    return ignored - {"scale"} if in_reward else ignored


def _without(chosen: Chosen, reasons: Mapping[str, str]) -> list[Chosen]:
    """The shaper less what does nothing; nothing where that is all of it."""
    for option, reason in reasons.items():
        name = f"shapers[{chosen.label}]" + (f".{option}" if option else "")
        logger.warning("%s is left out: %s", name, reason)
    if "" in reasons:
        return []
    options = {name: getattr(chosen.config, name) for name in chosen.config.model_fields_set - set(reasons)}
    return [replace(chosen, config=type(chosen.config)(**options))] if reasons else [chosen]


def _is_chosen_on_command_line(tree: "Node", section: str) -> bool:
    """Whether the command line chose that section, one of its options, or the algorithm that sets it."""
    node, algorithm = tree.fields().get(section), tree.fields().get("algorithm")
    children = list(node.fields().values()) if node is not None else []
    by_algorithm = algorithm is not None and algorithm.origin.layer == "command"
    return any(
        child.origin.layer == "command" or (by_algorithm and child.origin.layer == "bundle") for child in children
    )
