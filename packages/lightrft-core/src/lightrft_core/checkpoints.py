"""Checkpoints that are either whole or not there.

Written into `tmp_step_000010`, each file flushed and hashed, sealed by manifest.json, renamed to `step_000010`; older
ones go only then, and only folders that carry our seal. Killed at any point, the newest whole one is found again; a
damaged one is refused by name and the one before is used.
"""

import errno
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Final

from lightrft_core.contents import STATE, Checkpoint, is_weights_alone, read_share, start_from, state_text, step_of
from lightrft_core.durable import sync_file, sync_folder
from lightrft_core.errors import RunFailed
from lightrft_core.protocols import Json, SoloWorld, World
from lightrft_core.seal import (
    FORMAT,
    MANIFEST,
    Damaged,
    Files,
    is_ours,
    list_files,
    measure_files,
    misfits,
    read_manifest,
    remove,
    seal_text,
)

logger = logging.getLogger(__name__)
Write = Callable[[Path], None]

_NAME: Final = re.compile(r"(step|old_step)_(\d{6,})")
_LEFTOVER: Final = re.compile(r"(tmp|gone)_step_\d{6,}")


class Checkpoints:
    """The checkpoints of one run under `root`. All ranks share the folder.

    The newest `keep` stay, as long as all of them together take no more than `max_bytes`. The newest always does, and
    so does the newest that a run goes on from, where those after it are weights alone.
    """

    def __init__(self, root: Path, keep: int, max_bytes: float | None = None) -> None:
        self.root, self.keep, self.max_bytes = root, keep, max_bytes
        self._refused: set[str] = set()

    def save(
        self, step: int, state: Json, write: Write, world: World | None = None, *, also: Sequence[Write] = ()
    ) -> Path:
        """Publish a checkpoint of `step`; called by all ranks together, each of which writes its files with `write`.

        `write` gets an existing folder. `state` is kept in state.json; with None no run goes on from this checkpoint.
        `also` are called after `write`, each once all ranks are done with the one before. Raises `RunFailed` on every
        rank where any of them could not write; what was there before is then untouched. Other errors of `write` are
        raised as they are on the rank that had them.
        """
        world = world or SoloWorld()
        final, beside = self.root / f"step_{step:06d}", self.root / f"tmp_step_{step:06d}"
        text = None if state is None else state_text(state)
        self._together(world, lambda: self._begin(beside) if world.rank == 0 else None)
        try:
            # one by one: a rank that fails must not leave the others waiting inside of the next
            parts: list[Write] = [partial(_write_state, text if world.rank == 0 else None), write, *also]
            for part in parts:
                self._together(world, partial(part, beside))
            mine: Files = {}
            self._together(world, lambda: mine.update(measure_files(beside, world.rank, world.size)))
            files = {name: facts for part in world.gather(mine) for name, facts in part.items()}
            self._together(world, lambda: self._publish(beside, final, files) if world.rank == 0 else None)
        except Exception:
            if world.rank == 0 and beside.exists():
                remove(beside)
            raise
        self._refused.discard(final.name)
        if world.rank == 0:
            self._prune(step)
        world.barrier()
        return final

    def newest(self, world: World | None = None, *, resumable: bool = False) -> Checkpoint | None:
        """The newest whole checkpoint, or None without any. Each damaged one is named in a warning and passed over.

        `resumable` leaves those out that hold weights alone. All ranks call it together, and each reads and hashes its
        share of the files.
        """
        world = world or SoloWorld()
        paths = self._published(resumable=resumable) if world.rank == 0 else []
        names: list[str] = world.gather([path.name for path in paths])[0]
        return self._first_whole([self.root / name for name in names], world)

    def tidy(self, world: World | None = None) -> None:
        """Remove what a killed process left unfinished; for the run itself, not for those who read along."""
        world = world or SoloWorld()
        published = self._published() if world.rank == 0 else []
        if published:
            self._clear_leftovers()
            self._prune(step_of(published[0]))
        world.barrier()

    def steps(self, *, resumable: bool = False) -> list[int]:
        """Steps of the published checkpoints, oldest first; whether they are whole is not asked."""
        return sorted({step_of(path) for path in self._published(resumable=resumable)})

    def weights_alone(self) -> list[Path]:
        """Those that no run goes on from, newest first."""
        return [path for path in self._published() if is_weights_alone(path)]

    def at(self, step: int) -> Checkpoint | None:
        """The whole checkpoint of one step; None where there is none, with a warning where it is damaged."""
        return self._first_whole([path for path in self._published() if step_of(path) == step], SoloWorld())

    def _first_whole(self, paths: Sequence[Path], world: World) -> Checkpoint | None:
        for path in paths:
            found, problem = read_share(path, world.rank, world.size)
            told = enumerate(world.gather(problem))
            problems = [f"rank {rank}: {text}" if rank else text for rank, text in told if text is not None]
            if found is not None and not problems:
                return found
            self._refused.add(path.name)
            if world.rank == 0:
                logger.warning("checkpoint %s is refused: %s", path, problems[0])
        return None

    def _published(self, *, resumable: bool = False) -> list[Path]:
        """Checkpoint folders, newest first; of one step the new one before the one it was to replace."""
        if not self.root.is_dir():
            return []
        folders = [path for path in self.root.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
        folders = [path for path in folders if not (resumable and is_weights_alone(path))]
        return sorted(folders, key=lambda path: (step_of(path), path.name.startswith("step")), reverse=True)

    def _begin(self, beside: Path) -> None:
        if not self.root.is_dir():
            self.root.mkdir(parents=True)
            sync_folder(self.root.parent)
        self._clear_leftovers()
        beside.mkdir()
        try:
            _write_text(beside / MANIFEST, json.dumps({"format": FORMAT}))
        except OSError:
            remove(beside)
            raise

    def _clear_leftovers(self) -> None:
        for path in [path for path in self.root.iterdir() if _LEFTOVER.fullmatch(path.name)]:
            if is_ours(path):
                logger.info("removing %s, left over from a save that was cut short", path.name)
                remove(path)

    def _publish(self, beside: Path, final: Path, files: Files) -> None:
        manifest = {"format": FORMAT, "step": step_of(final), "files": dict(sorted(files.items()))}
        sealed = beside / f".{MANIFEST}"
        _write_text(sealed, seal_text(manifest))
        sealed.replace(beside / MANIFEST)
        for folder in sorted({path.parent for path in list_files(beside)} | {beside}, reverse=True):
            sync_folder(folder)
        if final.exists():
            self._set_aside(final)
        beside.rename(final)
        sync_folder(self.root)

    def _set_aside(self, path: Path) -> None:
        """Free the name of a checkpoint that is written anew; until then it can still be loaded."""
        aside = self.root / f"old_{path.name}"
        if not is_ours(path) or (aside.exists() and not is_ours(aside)):
            count = sum(1 for other in self.root.iterdir() if other.name.startswith(f"foreign_{path.name}"))
            aside = self.root / f"foreign_{path.name}_{count}"
            logger.warning("%s does not look like ours and is kept as %s", path, aside.name)
        elif aside.exists():
            self._discard(aside)
        path.rename(aside)

    def _prune(self, step: int) -> None:
        """Remove what we wrote and need no more, now that a newer one is on the disk. A failure here loses nothing."""
        earlier = [path for path in self._published() if step_of(path) <= step and is_ours(path)]
        by_step = {step_of(path): path for path in reversed(earlier) if self._looks_whole(path)}  # the new one of each
        kept = self._within_limits(sorted(by_step.values(), key=step_of, reverse=True))
        for path in [path for path in earlier if path not in kept]:
            try:
                self._discard(path)
            except OSError as error:
                logger.warning("old checkpoint %s could not be removed: %s", path, error)

    def _within_limits(self, whole: Sequence[Path]) -> list[Path]:
        """Those that stay, of whole ones from the newest on: what must, and more while there is room."""
        resumable = next((path for path in whole if not is_weights_alone(path)), None)
        needed = [path for path in whole if path in (whole[0], resumable)]
        more = [path for path in whole if path not in needed][: max(0, self.keep - len(needed))]
        if self.max_bytes is None:
            return needed + more
        room = self.max_bytes - sum(map(_size_of, needed))
        if room < 0:
            self._tell_too_large(needed)
        totals = accumulate(map(_size_of, more))
        return needed + [path for path, total in zip(more, totals, strict=True) if total <= room]

    def _tell_too_large(self, needed: Sequence[Path]) -> None:
        names, size = " and ".join(map(str, needed)), sum(map(_size_of, needed))
        take = "together take" if len(needed) > 1 else "alone takes"
        logger.warning("%s %s %s bytes, more than checkpoint.max_gb allows", names, take, f"{size:,}")

    def _discard(self, path: Path) -> None:
        gone = self.root / f"gone_{path.name.removeprefix('old_')}"
        if gone.exists():
            remove(gone)
        path.rename(gone)
        remove(gone)

    def _looks_whole(self, path: Path) -> bool:
        try:
            return path.name not in self._refused and next(misfits(path, read_manifest(path)), None) is None
        except (Damaged, OSError):
            return False

    def _together(self, world: World, work: Callable[[], object]) -> None:
        """Do this rank's share, then learn how the others fared: either all ranks go on, or all raise."""
        error: Exception | None = None
        try:
            work()
        except Exception as problem:  # any error on one rank must reach all ranks, or they wait for ever
            error = problem
        reports = world.gather(None if error is None else [type(error).__name__, str(error), _is_disk_error(error)])
        if error is not None and not _is_disk_error(error):
            raise error
        failed = [(rank, report) for rank, report in enumerate(reports) if report is not None]
        if failed:
            rank, (kind, text, is_disk) = failed[0]
            raise self._failure(
                f"rank {rank}: " * (world.size > 1) + (text if is_disk else f"{kind}: {text}")
            ) from error

    def _failure(self, cause: str) -> RunFailed:
        newest = next((path for path in self._published() if self._looks_whole(path)), None)
        size = _size_of(newest) if newest else 0
        needed = f"; the last checkpoint took {size:,} bytes" if newest else ""
        kept = f"{newest} is intact." if newest else "There is no earlier checkpoint."
        next_step = f"Make room, then go on with `lightrft train --resume {self.root.parent}`."
        if newest is not None and not self.steps(resumable=True):
            next_step = start_from(newest)
        return RunFailed(
            f"the checkpoint could not be written: {cause} ({_free_bytes(self.root):,} bytes free{needed}).",
            where=str(self.root),
            hint=f"{kept} {next_step}",
        )


def _write_state(text: str | None, beside: Path) -> None:
    if not beside.is_dir():
        raise OSError(errno.ENOENT, f"{beside} is not visible here: all ranks must share the run's folder")
    if text is not None:
        _write_text(beside / STATE, text)


def _size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in list_files(path))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    sync_file(path)


def _is_disk_error(error: Exception) -> bool:
    # safetensors wraps the operating system's error in its own class, which core cannot name
    return isinstance(error, OSError) or "IoError" in str(error) or "I/O error" in str(error)


def _free_bytes(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return os.statvfs(path).f_bavail * os.statvfs(path).f_frsize
