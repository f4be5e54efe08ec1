"""Merging in order of precedence: defaults < algorithm bundle < file < `--set` and flags.

Where a later layer names another `use` than an earlier one, the earlier one's options of that section go; what the
user's own file said about options that every component of the kind has stays. Lists replace earlier lists.
"""

import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from lightrft_core.descriptors import Algorithm, Component
from lightrft_core.errors import UserError
from lightrft_core.kinds import BY_SECTION, KINDS, Kind
from lightrft_core.nodes import Node, Origin, from_plain
from lightrft_core.overrides import Override, apply, section_of, split_key
from lightrft_core.plugins import Plugins
from lightrft_core.sections import Section
from lightrft_core.validation import KeyProblem

logger = logging.getLogger(__name__)

DEFAULT = Origin("default", "default")
DEFAULT_TRACKERS = ("console", "jsonl")
OFF = (None, False, "none", "off", "no")


def absolute_paths(root: Node, folder: Path) -> None:
    """Make every text that starts with `./`, `../` or `~/` an absolute path, in place; the first two below `folder`."""
    for _, node in root.walk():
        if isinstance(node.value, str) and (node.value.startswith(("./", "../")) or node.value in (".", "..")):
            node.value = str((folder / node.value).resolve())
        elif isinstance(node.value, str) and node.value.startswith("~/"):
            node.value = str(Path(node.value).expanduser())


def merge_layers(file: Node, overrides: Sequence[Override], plugins: Plugins, problems: list[UserError]) -> Node:
    """All layers as one tree; what is wrong with an override or the algorithm's name is added to `problems`."""
    tree = Node({"trackers": from_plain([{"use": name} for name in DEFAULT_TRACKERS], DEFAULT)}, DEFAULT)
    expand_shorthand(file)
    algorithm = _algorithm(file, overrides)
    if algorithm is not None:
        bundle = _bundle(algorithm, plugins, problems)
        if bundle is not None:
            if algorithm.origin.layer == "command":
                _give_way(file, bundle, algorithm.origin, plugins)
            overlay(tree, bundle)
        tree.fields()["algorithm"] = algorithm
    overlay(tree, Node({k: v for k, v in file.fields().items() if k != "algorithm"}, file.origin))
    rest = [override for override in overrides if not _names_algorithm(override)]
    for override in sorted(rest, key=_is_detail):  # `loss.use` before the options of the loss that it names
        try:
            _apply(tree, override, plugins)
        except UserError as problem:
            problems.append(problem)
    return tree


def overlay(lower: Node, upper: Node) -> None:
    """Lay the sections of `upper` over `lower`, in place."""
    for name, node in upper.fields().items():
        below = lower.fields().get(name)
        kind = BY_SECTION.get(name)
        if below is None:
            lower.fields()[name] = node
        elif (
            isinstance(below.value, dict)
            and (kind is None or kind.count != "many")
            and not _switches(below, node, kind)
        ):
            if isinstance(node.value, dict):
                below.origin, below.key = node.origin, node.key
                overlay(below, node)
            elif node.value is not None or kind is not None:
                lower.fields()[name] = node
        else:
            lower.fields()[name] = node


def expand_shorthand(root: Node) -> None:
    """`loss: clip` becomes `loss: {use: clip}`, and single items of a list section a list of one, in place."""
    for kind in KINDS:
        node = root.fields().get(kind.section)
        if node is None or kind.count == "none" or kind.name == "algorithm":
            continue
        root.fields()[kind.section] = _expand_many(node) if kind.count == "many" else _expand(node, kind)
    evaluation = root.fields().get("evaluation")
    task = evaluation.child("task") if evaluation is not None else None
    if evaluation is not None and task is not None and task.value is not None:  # null: no evaluation
        evaluation.fields()["task"] = _expand(task, BY_SECTION["task"])


def _expand(node: Node, kind: Kind) -> Node:
    if kind.count == "optional" and not isinstance(node.value, list | dict) and node.value in OFF:
        return Node(None, node.origin, node.key)
    if isinstance(node.value, str):
        return Node({"use": Node(node.value, node.origin)}, node.origin, node.key)
    if node.value is None:
        return Node({}, node.origin, node.key)
    return node


def _expand_many(node: Node) -> Node:
    if node.value is None:
        return Node([], node.origin, node.key)
    items = node.items() if isinstance(node.value, list) else [node]
    expanded: list[Node] = []
    for item in items:
        is_name = isinstance(item.value, str)
        expanded.append(Node({"use": Node(item.value, item.origin)}, item.origin, item.key) if is_name else item)
    return Node(expanded, node.origin, node.key)


def _algorithm(file: Node, overrides: Sequence[Override]) -> Node | None:
    node = file.fields().get("algorithm")
    for override in overrides:
        if _names_algorithm(override):
            node = from_plain(override.value, override.origin)
    if node is not None and isinstance(node.value, dict) and list(node.value) == ["use"]:
        node = node.value["use"]
    return None if node is None or (not isinstance(node.value, list | dict) and node.value in OFF) else node


def _give_way(file: Node, bundle: Node, origin: Origin, plugins: Plugins) -> None:
    """The command line's algorithm takes another component than the file meant: the options of the file's go, in place.

    Which component that was, the file says itself, or its own algorithm, or the default. What it said about
    options that every component of the kind has stays, and so does a section that it turned off.
    """
    named = file.fields().get("algorithm")
    own = _bundle(named, plugins, []) if named is not None and named.value not in OFF else None
    for name, node in bundle.fields().items():
        kind, section = BY_SECTION.get(name), file.fields().get(name)
        if kind is None or kind.count == "many" or section is None or not isinstance(section.value, dict):
            continue
        before = (own.fields().get(name) if own is not None else None) or Node({}, file.origin)
        meant, taken = _use(section if "use" in section.value else before, kind), _use(node, kind)
        if meant != taken:
            _drop_options(section, kind, f"{kind.section}.%s goes with {meant}, {origin.source} takes {taken}")


def _drop_options(section: Node, kind: Kind, why: str) -> None:
    """Take what only one component of the kind has out of a section, in place, and say so."""
    for name, node in list(section.fields().items()):
        if name in kind.config_base.model_fields:
            continue
        del section.fields()[name]
        if name != "use":
            logger.warning("%s: %s", node.origin.position, why % name)


def _names_algorithm(override: Override) -> bool:
    return override.key in ("algorithm", "algorithm.use")


def _bundle(node: Node, plugins: Plugins, problems: list[UserError]) -> Node | None:
    where = f"{node.origin.position} algorithm"
    if not isinstance(node.value, str):
        names = ", ".join(offer.descriptor.name for offer in plugins.offers("algorithm"))
        problems.append(UserError("takes the name of an algorithm.", where=where, hint=f"There is: {names}."))
        return None
    try:
        found = plugins.find("algorithm", node.value, where=where)
    except UserError as problem:
        problems.append(waiting_for(node.origin, "algorithm", "algorithm", node.value, plugins) or problem)
        return None
    if not isinstance(found, Algorithm):
        raise TypeError(f"algorithm {node.value} is a {type(found).__name__}")
    bundle = from_plain(found.sections, Origin(f"algorithm {found.name}", "bundle"))
    expand_shorthand(bundle)
    return bundle


def waiting_for(origin: Origin, kind: str, key: str, name: str, plugins: Plugins) -> KeyProblem | None:
    """The error for a LightRFT flag whose component nobody offers yet; None where that is not the matter."""
    if not origin.is_flag or any(offer.descriptor.name == name for offer in plugins.offers(kind)):
        return None
    offers = ", ".join(sorted({offer.descriptor.name for offer in plugins.offers(kind)})) or "nothing of this kind"
    what = f"{origin.source} sets {key}: {name}, which no installed plugin offers yet."
    return KeyProblem(what, key=key, origin=origin, hint=f"Installed: {offers}.", where="")


def _switches(below: Node, above: Node, kind: Kind | None) -> bool:
    use = above.child("use")
    return kind is not None and use is not None and use.value != _use(below, kind)


def _use(node: Node, kind: Kind) -> str | None:
    use = node.child("use")
    return str(use.value) if use is not None else kind.default


def _is_detail(override: Override) -> bool:
    return not (override.key in BY_SECTION or override.key.endswith(".use"))


def _apply(tree: Node, override: Override, plugins: Plugins | None = None) -> None:
    kind = BY_SECTION.get(section_of(override))
    steps = split_key(override)
    if kind is not None and kind.count != "many" and steps[1:] in ([], ["use"]) and isinstance(override.value, str):
        if kind.count == "optional" and override.value in OFF:
            tree.fields()[kind.section] = Node(None, override.origin)
        else:
            _switch(tree, kind, override, plugins)
        return
    apply(tree, override)
    if len(steps) == 1 or override.key == "evaluation.task":
        expand_shorthand(tree)


def _switch(tree: Node, kind: Kind, override: Override, plugins: Plugins | None) -> None:
    """Name another component for a section: only what the user said about options that both have stays."""
    below = tree.fields().get(kind.section)
    use = Node(override.value, override.origin)
    if below is None or not isinstance(below.value, dict):
        tree.fields()[kind.section] = Node({"use": use}, override.origin)
        return
    if override.value != _use(below, kind):
        shared = _shared_options(kind, _use(below, kind), str(override.value), plugins)
        for name, node in list(below.value.items()):
            if name == "use" or (node.origin.layer == "file" and name in shared):
                continue
            del below.value[name]
            if node.origin.layer == "file":
                logger.warning(
                    "%s: %s.%s goes with %s, which %s replaces by %s",
                    node.origin.position, kind.section, name, _use(below, kind), override.source, override.value,
                )  # fmt: skip
    below.value["use"] = use


def _shared_options(kind: Kind, old: str | None, new: str, plugins: Plugins | None) -> set[str]:
    """Options of the whole kind, and those that both components have from one class: one meaning, not just one word."""
    shared = set(kind.config_base.model_fields)
    offers = {offer.descriptor.name: offer.descriptor for offer in plugins.offers(kind.name)} if plugins else {}
    found = [offers.get(name or "") for name in (old, new)]
    if plugins is None or not all(isinstance(item, Component) for item in found):
        return shared
    configs = [plugins.config_class(kind.name, cast(Component, item)) for item in found]
    owners = [{field: _owner(config, field) for field in config.model_fields} for config in configs]
    return shared | {field for field, owner in owners[0].items() if owners[1].get(field) is owner}


def _owner(config: type[Section], field: str) -> type:
    return next(parent for parent in config.__mro__ if field in inspect.get_annotations(parent))


def tree_of(overrides: Sequence[Override]) -> Node:
    """A run file that says what the overrides say, and nothing else. Raises `UserError` for a malformed one."""
    tree = Node({}, DEFAULT)
    if any(section_of(override) == "trackers" for override in overrides):
        tree.fields()["trackers"] = from_plain([{"use": name} for name in DEFAULT_TRACKERS], DEFAULT)
    for override in sorted(overrides, key=lambda override: (not _names_algorithm(override), _is_detail(override))):
        if _names_algorithm(override):
            tree.fields()["algorithm"] = from_plain(override.value, override.origin)
        else:
            _apply(tree, override)
    return tree
