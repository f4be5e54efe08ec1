"""Writing files so that a crash at any point leaves either the old content or the new, never a mixture.

New content goes to a neighbour, is flushed to the disk, and takes the name by rename.
"""

import os
import re
from pathlib import Path
from typing import Final

_BESIDE: Final = re.compile(r"\..+\.(\d{1,9})\.tmp")


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


def is_unpublished(path: Path) -> bool:
    """Whether `replace_text` made this file and is at it still, or was ended before it gave the file its name."""
    return _BESIDE.fullmatch(path.name) is not None


def remove_unpublished(folder: Path) -> None:
    """Remove such files from a folder, but for those of processes that live on this machine."""
    for path in folder.iterdir():
        match = _BESIDE.fullmatch(path.name)
        if match is not None and not _is_alive(int(match[1])):
            path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
