"""A folder whose manifest.json lists every file with size and SHA-256, and is itself sealed by a hash.

So a lost, cut or changed file is found before anything is read from it, and our folders are told from anybody else's.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from lightrft_core.durable import sync_file
from lightrft_core.protocols import Json

Files = dict[str, dict[str, Json]]

MANIFEST: Final = "manifest.json"
FORMAT: Final = "lightrft-checkpoint-1"
_CHUNK: Final = 1 << 20


class Damaged(Exception):
    """Why a folder is not what was sealed."""


def verify(path: Path, rank: int = 0, size: int = 1) -> None:
    """Read a rank's share of a checkpoint's files, alone every file.

    Raises `Damaged` with the file's name where it is not what was sealed.
    """
    manifest = read_manifest(path)
    for problem in misfits(path, manifest):
        raise Damaged(problem)
    for name, facts in list(manifest["files"].items())[rank::size]:
        if sha256_of(path / name) != facts["sha256"]:
            raise Damaged(f"{name} has another content than was written (its hash differs)")


def misfits(path: Path, manifest: Mapping[str, Json]) -> Iterator[str]:
    """What can be seen without reading the files: names and sizes."""
    files: Files = manifest["files"]
    if not path.name.endswith(f"step_{manifest['step']:06d}"):
        yield f"{MANIFEST} is that of step {manifest['step']}"
    present = {file.relative_to(path).as_posix(): file for file in list_files(path)}
    for name, facts in files.items():
        if name not in present:
            yield f"{name} is missing"
        elif present[name].stat().st_size != facts["size"]:
            yield f"{name} has {present[name].stat().st_size:,} bytes instead of {facts['size']:,}"
    for name in sorted(present.keys() - files.keys() - {MANIFEST}):
        yield f"{name} is not in its {MANIFEST}"


def read_manifest(path: Path) -> dict[str, Json]:
    """The folder's manifest. Raises `Damaged` where it is missing, changed or of another format."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Damaged(f"{MANIFEST} is missing") from None
    except ValueError:
        raise Damaged(f"{MANIFEST} cannot be read") from None
    if not isinstance(manifest, dict) or manifest.pop("seal", None) != _seal(manifest):
        raise Damaged(f"{MANIFEST} is not as it was written")
    if manifest.get("format") != FORMAT:
        raise Damaged(f"{MANIFEST} has format {manifest.get('format')!r}; this version reads {FORMAT!r}")
    return manifest


def measure_files(beside: Path, rank: int, size: int) -> Files:
    """Flush and hash this rank's share of a folder's files: size and SHA-256 by name."""
    mine = [path for path in list_files(beside) if path.name != MANIFEST][rank::size]
    for path in mine:
        sync_file(path)
    return {
        path.relative_to(beside).as_posix(): {"size": path.stat().st_size, "sha256": sha256_of(path)} for path in mine
    }


def list_files(folder: Path) -> list[Path]:
    """Files below a folder, in order; hidden ones (those of file managers and NFS) are nobody's."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def is_ours(path: Path) -> bool:
    """Whether we made this folder: it carries our manifest, or is empty as in the first moment of a save."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        return isinstance(manifest, dict) and manifest.get("format") == FORMAT
    except FileNotFoundError:
        return not any(path.iterdir())
    except (OSError, ValueError):
        return False


def remove(path: Path) -> None:
    """Remove a folder of ours, its manifest last: cut short, it is still known as ours. Raises `OSError`."""
    for entry in [entry for entry in path.iterdir() if entry.name != MANIFEST]:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    shutil.rmtree(path)


def seal_text(manifest: Mapping[str, Json]) -> str:
    """A manifest as text, with its own hash in it."""
    return json.dumps({**manifest, "seal": _seal(manifest)}, separators=(",", ":"))


def _seal(manifest: Mapping[str, Json]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Hash of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
