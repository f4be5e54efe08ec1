"""A run's folder: everything that one training run reads back or leaves behind lies in it.

    runs/<name>/  run.yaml  manifest.json  metrics.jsonl  log.txt  rollouts.sqlite  checkpoints/  plots/  logs/  STATUS

Whoever writes STATUS `running` holds a lock on the folder until it ends, however it ends; so a run that was killed is
told apart from one that goes on, and two processes can never train into one folder.
"""

import fcntl
import json
import logging
import os
import platform
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, get_args

from lightrft_core.durable import is_unpublished, remove_unpublished, replace_text, sync_folder
from lightrft_core.errors import UserError
from lightrft_core.metrics_file import truncate_metrics as truncate_metrics
from lightrft_core.protocols import Json
from lightrft_core.redaction import redact, redact_json
from lightrft_core.suggest import nearest

RunState = Literal["running", "done", "stopped", "failed"]
SeenState = Literal["running", "done", "stopped", "failed", "killed", "new"]
_LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@dataclass(frozen=True, slots=True)
class Status:
    """How a run stands. `state` may also be `killed` (its process is gone without a word) or `new` (never started)."""

    state: SeenState
    reason: str = ""
    exit_code: int | None = None
    pid: int | None = None
    host: str = ""
    updated: str = ""


def default_name(recipe: str, now: datetime | None) -> str:
    """`<recipe>-<MMDD-HHMMSS>`, or `<recipe>` alone, in characters that a folder and `run.name` allow."""
    clean = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in recipe.removesuffix(".yaml"))
    name = clean.lstrip("._-") or "run"
    return name if now is None else f"{name}-{now:%m%d-%H%M%S}"


class RunDir:
    """The paths of one run and its status. Build it with `create` or `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_yaml = path / "run.yaml"
        self.manifest = path / "manifest.json"
        self.metrics = path / "metrics.jsonl"
        self.log = path / "log.txt"
        self.rollouts = path / "rollouts.sqlite"
        self.checkpoints = path / "checkpoints"
        self.plots = path / "plots"
        self.logs = path / "logs"  # of other ranks than 0, and of the launcher
        self.status_file = path / "STATUS"
        self.stop_file = path / "STOP"
        self._lock: int | None = None

    @property
    def name(self) -> str:
        """The folder's name is the run's."""
        return self.path.name

    @property
    def is_run(self) -> bool:
        """Whether the folder is that of a run."""
        return self.run_yaml.is_file() or self.status_file.is_file()

    @classmethod
    def create(cls, parent: Path, name: str, *, again: bool = False) -> "RunDir":
        """Make `parent/name`. `UserError` where it exists already (it is never overwritten) or cannot be made.

        `again` may find what a process left that was killed before the run had its run file.
        """
        path = parent.absolute() / name
        is_left = again and _has_not_begun(path)
        try:
            path.mkdir(parents=True, exist_ok=is_left)
            (path / "checkpoints").mkdir(exist_ok=is_left)
            (path / "plots").mkdir(exist_ok=is_left)
            sync_folder(path.parent)
        except FileExistsError:
            raise _exists(path) from None
        except OSError as error:
            raise UserError(
                f"the folder {path} cannot be made: {error.strerror}.",
                where="run.dir",
                hint="Choose a folder you may write to with `--set run.dir=...`.",
            ) from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunDir":
        """An existing run. `UserError` where `path` is none."""
        run_dir = cls(path.absolute())
        if not run_dir.is_run:
            what = "is not a run's folder (no run.yaml in it)" if path.is_dir() else "does not exist"
            raise UserError(f"{path} {what}.", hint="`lightrft runs list` shows the runs.")
        return run_dir

    @classmethod
    def find(cls, text: str, parent: Path = Path("runs")) -> "RunDir":
        """A run by its folder's path, or by its name under `parent`. `UserError` with a near name where it is none."""
        folders = [path for path in (Path(text), parent / text) if path.is_dir()]
        runs = [path for path in folders if cls(path).is_run]  # a folder beside runs/ may have a run's name
        if folders:
            return cls.open((runs or folders)[0])
        near = nearest(Path(text).name, [run.name for run in cls.all(parent)], limit=1)
        meant = f"Did you mean {near[0]!r}? " if near else ""
        raise UserError(
            f"there is no run {text!r}, neither as a path nor in {parent}/.",
            hint=f"{meant}`lightrft runs list` shows the runs.",
        )

    @classmethod
    def all(cls, parent: Path) -> list["RunDir"]:
        """The runs in a folder, the most lately changed first."""
        runs = [cls(path.absolute()) for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
        runs = [run for run in runs if run.is_run]
        return sorted(runs, key=lambda run: (run.path.stat().st_mtime, run.name), reverse=True)

    def write_run_file(self, text: str) -> None:
        """Store the resolved run file, without secrets."""
        replace_text(self.run_yaml, redact(text))

    def write_manifest(self, manifest: Json) -> None:
        """Store what `manifest.describe` gives, without secrets."""
        replace_text(self.manifest, json.dumps(redact_json(manifest), indent=2, ensure_ascii=False) + "\n")

    def discard_unused(self) -> None:
        """Remove the folder of a run that ended before it measured, wrote or saved anything, so its name is free."""
        if self.metrics.exists() or any(self.checkpoints.glob("*")) or any(self.plots.glob("*")):
            return
        for path in (*self.path.glob(f"{self.rollouts.name}*"), *self.logs.glob("rank-*.txt")):
            path.unlink()
        # the run file last: cut short, this is still known as a run
        for path in (self.manifest, self.log, self.path / ".lock", self.status_file, self.run_yaml):
            path.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.plots, self.logs, self.path):
            with suppress(OSError):  # something that is not ours lies in it
                folder.rmdir()

    def read_manifest(self) -> dict[str, Json]:
        """The manifest; empty where the run never got so far."""
        return _read_object(self.manifest)

    def write_status(self, state: RunState, reason: str = "", exit_code: int | None = None) -> None:
        """Say how the run stands, atomically.

        `running` also claims the folder for this process until another state is written or the process is gone;
        `UserError` where another process holds it.
        """
        if state not in get_args(RunState):
            raise ValueError(f"no run state {state!r}")
        if state == "running":
            self._claim()
        updated = datetime.now(UTC).isoformat(timespec="seconds")
        status = Status(state, redact(reason), exit_code, os.getpid(), platform.node(), updated)
        replace_text(self.status_file, json.dumps(asdict(status)) + "\n")
        if state != "running" and self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read_status(self) -> Status:
        """How the run stands; `killed` where STATUS says running but no process holds the folder."""
        raw = _read_object(self.status_file)
        if not raw:
            return Status("new")
        status = Status(**{name: raw[name] for name in Status.__dataclass_fields__ if name in raw})
        if status.state == "running" and self._lock is None and not self._is_held():
            return replace(status, state="killed", reason="its process ended without a word")
        return status

    def await_run(self, seconds: float = 300.0) -> None:
        """Return when rank 0 has made it; `UserError` where that is not seen here for so long."""
        end = time.monotonic() + seconds
        while not self.run_yaml.is_file():
            if time.monotonic() >= end:
                raise UserError(
                    f"{self.path} has not appeared on {platform.node()} in {seconds:g} seconds; rank 0 makes it.",
                    where="run.dir",
                    hint="Choose a folder that all machines share with `--set run.dir=...`.",
                )
            time.sleep(0.05)

    def require_idle(self) -> None:
        """`UserError` while a process trains it."""
        if self.read_status().state == "running":
            raise self._held()

    def log_handler(self) -> logging.Handler:
        """A handler that appends records to log.txt, without secrets; add it to a logger and close it at the end."""
        handler = _LogFile(self.log, encoding="utf-8", errors="backslashreplace", delay=True)
        handler.setFormatter(_Redacting(_LOG_FORMAT))
        return handler

    def _claim(self) -> None:
        if self._lock is not None:
            return
        descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise self._held() from None
        self._lock = descriptor
        remove_unpublished(self.path)

    def _held(self) -> UserError:
        status = _read_object(self.status_file)
        return UserError(
            f"run {self.name} is being trained by process {status.get('pid')} on {status.get('host')}.",
            where=str(self.path),
            hint="Wait for it or stop it, then use `--resume`; or choose another `--set run.name=...`.",
        )

    def _is_held(self) -> bool:
        try:
            descriptor = os.open(self.path / ".lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _LogFile(logging.FileHandler):
    """Says once that the log cannot be written; training goes on."""

    has_complained = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.has_complained:
            self.has_complained = True
            os.write(2, f"warning: {self.baseFilename} cannot be written; training goes on without it\n".encode())


def _has_not_begun(path: Path) -> bool:
    """Whether nothing lies in a run's folder but empty folders of ours, and files that never got their names."""
    ours = ("checkpoints", "plots", "logs")
    return path.is_dir() and all(
        is_unpublished(entry) or (entry.name in ours and entry.is_dir() and not any(entry.iterdir()))
        for entry in path.iterdir()
    )


def _exists(path: Path) -> UserError:
    return UserError(
        f"the run folder {path} exists already and is never overwritten.",
        where="run.name",
        hint=f"Go on with that run: `lightrft train --resume {path}`; or start another: `--set run.name=...`.",
    )


def _read_object(path: Path) -> dict[str, Json]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
