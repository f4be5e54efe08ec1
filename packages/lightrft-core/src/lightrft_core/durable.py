"""Writing files so that a crash at any point leaves either the old content or the new, never a mixture.

New content goes to a neighbour, is flushed to the disk, and takes the name by rename.
"""

import os
from pathlib import Path


def sync_file(path: Path) -> None:
    """Wait until the file's content is on the disk."""
    _sync(path, os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Wait until the folder's list of names is on the disk, so that a rename in it survives a power cut."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def replace_text(path: Path, text: str) -> None:
    """Give `path` this content, UTF-8, atomically and durably. Raises `OSError`, and then `path` is as it was."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
