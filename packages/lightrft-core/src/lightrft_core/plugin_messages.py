"""What a user is told about plugins: each message is one paragraph that says what to do."""

from collections.abc import Sequence

from lightrft_core.errors import UserError
from lightrft_core.plugin_loading import Offer, PluginRow, State
from lightrft_core.requirements import extras_of, first_choice, name_of
from lightrft_core.suggest import nearest

_HOMES = {  # which of LightRFT's packages to install for a kind
    "algorithm": "lightrft-algos",
    "sampler": "lightrft-algos",
    "shaper": "lightrft-algos",
    "filter": "lightrft-algos",
    "advantage": "lightrft-algos",
    "kl": "lightrft-algos",
    "loss": "lightrft-algos",
    "selector": "lightrft-algos",
    "correction": "lightrft-algos",
    "engine": "lightrft-engines",
    "strategy": "lightrft-engines",
    "model": "lightrft-engines",
    "reward": "lightrft-rewards",
    "patch": "lightrft-vlm",
}


def bad_plugin(row: PluginRow) -> str:
    """A plugin's row as a sentence."""
    return f"plugin {row.title} is {row.state}: {row.problem}"


def unknown(kind: str, name: str, where: str, rows: Sequence[PluginRow], offers: Sequence[Offer]) -> UserError:
    """Nothing usable of that kind has that name; `offers` are all of the kind."""
    plugin, _, short = name.rpartition(":")
    culprit = next((row for row in rows if _could_offer(row, kind, short, plugin)), None)
    if culprit is not None:
        return UserError(
            f"{kind} {name!r} cannot be used, because {bad_plugin(culprit)}.", where=where, hint=_cure(culprit)
        )
    if plugin and plugin not in {row.name for row in rows}:
        known = ", ".join(sorted({offer.plugin for offer in offers}))
        near = _did_you_mean(plugin, [row.name for row in rows])
        what = f"no plugin {plugin!r} for {kind} {name!r}."
        return UserError(what, where=where, hint=f"{near}Plugins that offer this kind: {known or 'none'}.")
    names = sorted({offer.descriptor.name for offer in offers if plugin in ("", offer.plugin)})
    return UserError(f"no {kind} {name!r}.", where=where, hint=_known(kind, short, names, rows))


def unknown_anywhere(name: str, where: str, rows: Sequence[PluginRow], offers: Sequence[Offer]) -> UserError:
    """Neither a plugin nor a component of any kind has that name."""
    known = [row.name for row in rows] + [offer.descriptor.name for offer in offers]
    known += [f"{offer.kind}.{offer.descriptor.name}" for offer in offers]
    hint = f"{_did_you_mean(name, known)}`lightrft plugins list` shows all; a path must exist."
    return UserError(f"there is no plugin or component {name!r}.", where=where, hint=hint)


def clash(kind: str, name: str, where: str, offers: Sequence[Offer]) -> UserError:
    """Several plugins offer that name."""
    plugins = " and ".join(offer.plugin for offer in offers)
    choices = " or ".join(f"`{offer.plugin}:{name}`" for offer in offers)
    return UserError(f"{kind} {name!r} is offered by {plugins}.", where=where, hint=f"Write {choices}.")


def unmet_requirement(offer: Offer, missing: Sequence[str], where: str, distribution: str) -> UserError:
    """The component needs packages that are not installed: by an extra of its distribution, where that has one."""
    extras = extras_of(distribution)
    texts = [first_choice(requirement) for requirement in offer.descriptor.requires]
    named = [f"{distribution}[{name}]" if (name := name_of(text)) in extras else text for text in texts]
    wanted = " ".join(f"'{one}'" for one in named)
    what = f"{offer.kind} {offer.descriptor.name!r} of plugin {offer.plugin} needs {', '.join(missing)}."
    return UserError(what, where=where, hint=f"`pip install {wanted}`.")


def install_hint(error: BaseException) -> str:
    """What to do about a failed import."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"Install the package that holds {error.name.partition('.')[0]!r}, or choose another component."
    return "This is a fault of that plugin: update it, or choose another component."


def _could_offer(row: PluginRow, kind: str, name: str, plugin: str) -> bool:
    return not row.is_usable and (plugin == row.name or ((kind, name) in row.components and not plugin))


def _cure(row: PluginRow) -> str:
    if row.state is State.DISABLED:
        return "Take it out of LIGHTRFT_DISABLE, or choose another component."
    return "Update or repair that plugin, or choose another component."


def _known(kind: str, name: str, names: Sequence[str], rows: Sequence[PluginRow]) -> str:
    hints = [_did_you_mean(name, names).strip()]
    hints.append(f"Installed: {', '.join(names)}." if names else f"No installed plugin offers any {kind}.")
    hints.append(_suspects([row for row in rows if not row.is_usable and not row.components]))
    home = _HOMES.get(kind)
    if home is not None and home not in {row.distribution for row in rows}:
        hints.append(f"`pip install {home}` brings LightRFT's own.")
    else:
        hints.append("If another package offers it, `pip install` that package.")
    return " ".join(hint for hint in hints if hint)


def _suspects(rows: Sequence[PluginRow]) -> str:
    """Plugins that failed before anything was known of them."""
    if len(rows) == 1:
        return f"It may be in {bad_plugin(rows[0])}."
    names = ", ".join(row.name for row in rows)
    return f"It may be in a plugin that cannot be used ({names}): see `lightrft plugins list`." if rows else ""


def _did_you_mean(name: str, names: Sequence[str]) -> str:
    near = nearest(name, names, limit=1)
    return f"Did you mean {near[0]!r}? " if near else ""
