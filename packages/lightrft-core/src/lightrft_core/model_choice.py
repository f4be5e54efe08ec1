"""Which model adapter takes a model: by the `model_type` in its config.json, read as plain JSON."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightrft_core.descriptors import ModelComponent
from lightrft_core.errors import UserError
from lightrft_core.plugins import Offer, Plugins

MAX_POSITIONS = 1 << 20  # of a model that does not say how many it has
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def adapter_name(plugins: Plugins, path: str, *, where: str, environ: Mapping[str, str] = os.environ) -> str:
    """The name to look up; an adapter for this `model_type` beats one for any (`"*"`).

    A model that is only on a hub, not yet in the local cache, gets the adapter for any. Raises `UserError` for a
    missing folder, a broken config.json, and where none or several adapters fit.
    """
    kind = model_type(path, where, environ)
    exact, general = _fitting(plugins, kind), _fitting(plugins, "*")
    found = exact or general
    shown = f"model type {kind!r}" if kind else f"{path!r}"
    if not found:
        hint = "`pip install lightrft-engines` brings the text adapter, or name an adapter with model.use."
        raise UserError(f"no installed adapter takes {shown}.", where=where, hint=hint)
    names = {offer.descriptor.name for offer in found}
    if len(names) > 1:
        choices = " or ".join(f"`use: {name}`" for name in sorted(names))
        raise UserError(f"several adapters take {shown}.", where=where, hint=f"Write {choices} under model.")
    same = [offer for offer in plugins.offers("model") if offer.descriptor.name in names]
    return found[0].descriptor.name if len(same) == 1 else f"{found[0].plugin}:{found[0].descriptor.name}"


def _fitting(plugins: Plugins, model_type: str | None) -> list[Offer]:
    return [
        offer
        for offer in plugins.offers("model")
        if isinstance(offer.descriptor, ModelComponent) and model_type in offer.descriptor.model_types
    ]


def model_type(path: str, where: str = "model.path", environ: Mapping[str, str] = os.environ) -> str | None:
    """The `model_type` in a model's config.json; None where it is only on a hub. `UserError` as `adapter_name`."""
    config = _config_file(path, where, environ)
    if config is None:
        return None
    model_type = _content(config, where).get("model_type")
    if not isinstance(model_type, str):
        raise UserError(f"{config} names no model_type.", where=where, hint="Name an adapter with model.use.")
    return model_type


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model's config.json says of it; None where it does not, or is not here."""

    vocabulary: int | None = None
    positions: int | None = None


def limits(path: str, environ: Mapping[str, str] = os.environ) -> Limits:
    """How many tokens the model's embedding knows, and how many it was made to read at a time."""
    config = _config_file(path, "model.path", environ)
    content = _content(config, "model.path") if config is not None else {}
    inner = content.get("text_config")
    known = content | (inner if isinstance(inner, dict) else {})
    sizes = [known.get(name) for name in ("vocab_size", "max_position_embeddings")]
    return Limits(*(size if isinstance(size, int) and size > 0 else None for size in sizes))


def _config_file(path: str, where: str, environ: Mapping[str, str]) -> Path | None:
    folder = Path(path)
    if folder.is_dir():
        config = folder / "config.json"
        if not config.is_file():
            hint = "A Hugging Face model folder has one beside its safetensors."
            raise UserError(f"{path} has no config.json.", where=where, hint=hint)
        return config
    if folder.exists():
        raise UserError(f"{path} is a file, not a model's folder.", where=where, hint=f"Give {folder.parent}.")
    if HUB_ID.fullmatch(path) and not path.startswith("."):
        return _cached(path, environ)
    hint = "Give the folder of a Hugging Face model, or a hub id such as Qwen/Qwen2.5-0.5B-Instruct."
    raise UserError(f"{path} does not exist.", where=where, hint=hint)


def _content(config: Path, where: str) -> dict[str, Any]:  # Any: JSON
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{config} cannot be read: {error}.", where=where) from None
    return content if isinstance(content, dict) else {}


def _cached(hub_id: str, environ: Mapping[str, str]) -> Path | None:
    """The newest config.json of that model in the local hub cache."""
    home = environ.get("HF_HOME") or str(Path("~/.cache/huggingface").expanduser())
    hub = Path(environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    found = (hub / f"models--{hub_id.replace('/', '--')}" / "snapshots").glob("*/config.json")
    return max(found, key=lambda file: file.stat().st_mtime, default=None)
