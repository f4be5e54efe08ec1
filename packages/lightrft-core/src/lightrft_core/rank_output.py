"""Where ranks print: rank 0 to the terminal, each other one to its own file in the run's folder.

Where no rank has a terminal, as on a Ray cluster, a file stands in for it.
"""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from lightrft_core.errors import LightRFTError

Say = Callable[[str], None]
_APPEND: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND


def rank_log(folder: Path, rank: int) -> Path:
    """The file of a rank in the run's folder for logs."""
    return folder / f"rank-{rank:05d}.txt"


def to_terminal(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def own_output(folder: Path, rank: int, terminal: Path | None = None) -> Iterator[Say]:
    """While the block runs, stdout and stderr of ranks other than 0 go to their file, what programs write included.

    Yields what prints a line to the terminal all the same, or to the file that is given as one; with such a file rank 0
    is redirected too. What ends the block is written to the rank's file, unless that is the terminal: there the
    launcher tells it.
    """
    if rank == 0 and terminal is None:
        yield to_terminal
        return
    folder.mkdir(parents=True, exist_ok=True)
    stdout, stderr = os.dup(1), os.dup(2)
    log = rank_log(folder, rank)
    _point_at(log)
    shown = stderr if terminal is None else os.open(terminal, _APPEND, 0o644)
    try:
        yield lambda line: _write(shown, line)
    except LightRFTError as error:
        if log != terminal:
            to_terminal(f"error: {error}")
        raise
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        _flush()
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        for descriptor in {stdout, stderr, shown}:
            os.close(descriptor)
        drop_empty(log)


def drop_empty(log: Path) -> None:
    """Remove the file, and its folder, where nothing is in it."""
    with suppress(OSError):
        if log.stat().st_size == 0:
            log.unlink()
        log.parent.rmdir()


def _point_at(path: Path) -> None:
    _flush()
    descriptor = os.open(path, _APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _write(descriptor: int, line: str) -> None:
    os.write(descriptor, f"{line}\n".encode(errors="backslashreplace"))
