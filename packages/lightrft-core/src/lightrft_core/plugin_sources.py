"""Where plugins come from: entry points of group `lightrft`, and paths that the user names. Nothing is run."""

import importlib.metadata
import logging
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightrft_core.errors import UserError
from lightrft_core.loading import load_file

GROUP = "lightrft"
BUILT_IN = frozenset({"lightrft-core", "lightrft-algos", "lightrft-engines", "lightrft-vlm", "lightrft-rewards"})

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """A plugin that could be loaded. `load` imports it; `file` is set for a single-file plugin, `folder` for a project.

    `name` is the `acme` of `use: acme:clip`.
    """

    name: str
    distribution: str
    version: str
    load: Callable[[], Any]  # Any: a stranger's module
    file: Path | None = None
    folder: Path | None = None

    @property
    def is_built_in(self) -> bool:
        """Whether LightRFT itself ships it."""
        return self.distribution in BUILT_IN

    @property
    def is_named_by_path(self) -> bool:
        """Whether the user named it by path rather than installed it."""
        return self.file is not None or self.folder is not None

    def answers_to(self, name: str) -> bool:
        """Whether `name` is this plugin's or its distribution's, however `-`, `_` and `.` are written."""
        return _normalised(name) in (_normalised(self.name), _normalised(self.distribution))


def installed_sources() -> list[Source]:
    """Every installed plugin: LightRFT's own first, then by name."""
    sources = [_from_entry_point(entry_point) for entry_point in _entry_points()]
    return sorted(sources, key=lambda source: (not source.is_built_in, source.name, source.distribution))


def path_sources(paths: Iterable[Path]) -> list[Source]:
    """Plugins named by path: a `.py` file, or a project folder with a `pyproject.toml`.

    Raises `UserError` where a path is neither, or where a project declares no plugin.
    """
    return [source for path in paths for source in _from_path(path)]


def split_disabled(sources: Iterable[Source], environ: Mapping[str, str]) -> tuple[list[Source], list[Source]]:
    """Sources to load, and those that `LIGHTRFT_DISABLE` names: `*` means all but LightRFT's own."""
    sources = list(sources)
    names = [name.strip() for name in environ.get("LIGHTRFT_DISABLE", "").split(",") if name.strip()]
    for name in names:
        if name != "*" and not any(source.answers_to(name) for source in sources):
            known = ", ".join(source.name for source in sources)
            logger.warning("LIGHTRFT_DISABLE names %r, which is no plugin here. There are: %s.", name, known)

    def is_disabled(source: Source) -> bool:
        return any(source.answers_to(name) or (name == "*" and not source.is_built_in) for name in names)

    return [s for s in sources if not is_disabled(s)], [s for s in sources if is_disabled(s)]


def _entry_points() -> Iterator[importlib.metadata.EntryPoint]:
    try:
        yield from importlib.metadata.entry_points(group=GROUP)
    except (ValueError, TypeError) as error:  # one unreadable entry_points.txt spoils the lot: go through them singly
        logger.warning("An installed package has an unreadable entry_points.txt: %s.", error)
        for distribution in importlib.metadata.distributions():
            try:
                yield from distribution.entry_points.select(group=GROUP)
            except (ValueError, TypeError):
                logger.warning("Skipped the plugins of %s: entry_points.txt is unreadable.", distribution.name)


def _from_entry_point(entry_point: importlib.metadata.EntryPoint) -> Source:
    distribution, version = "unknown", "?"
    if entry_point.dist is not None:
        distribution, version = entry_point.dist.name or distribution, entry_point.dist.version or version
    return Source(entry_point.name, _normalised(distribution), version, entry_point.load)


def _from_path(path: Path) -> list[Source]:
    real = path.resolve()
    if real.suffix == ".py" and real.is_file():
        return [Source(real.stem, str(path), "", lambda: load_file(real), file=real)]
    if (real / "pyproject.toml").is_file():
        return _from_project(real)
    what = f"{path} is no plugin" if path.exists() else f"there is no {path}"
    raise UserError(what, where="plugins", hint="Name a .py file, or a folder with a pyproject.toml.")


def _from_project(folder: Path) -> list[Source]:
    where = str(folder / "pyproject.toml")
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"this is not TOML: {error}", where=where) from error
    declared = project.get("entry-points", {}).get(GROUP, {})
    if not declared:
        raise UserError(
            "this project declares no plugin",
            where=where,
            hint=f'Add a table [project.entry-points.{GROUP}] with a line such as acme = "lightrft_acme.plugin".',
        )
    distribution, version = str(project.get("name", folder.name)), str(project.get("version", "?"))
    return [
        Source(name, distribution, version, _project_loader(folder, name, value), folder=folder)
        for name, value in declared.items()
    ]


def _project_loader(folder: Path, name: str, value: str) -> Callable[[], Any]:  # Any: a stranger's module
    root = folder / "src" if (folder / "src").is_dir() else folder
    entry_point = importlib.metadata.EntryPoint(name=name, value=value, group=GROUP)

    def load() -> Any:  # Any: a stranger's module
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))
        module = entry_point.load()
        origin = getattr(sys.modules.get(entry_point.module), "__file__", None)
        if origin is None or not Path(origin).resolve().is_relative_to(folder):
            raise ImportError(f"{entry_point.module} was imported from {origin}, not from {folder}")
        return module

    return load


def _normalised(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
