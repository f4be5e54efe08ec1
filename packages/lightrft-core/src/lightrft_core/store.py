"""rollouts.sqlite: every scored rollout of a run, to be searched while training goes on.

One writer (or one a rank) and any number of readers: the write-ahead log lets neither wait for the other. Texts are
plain columns; token ids and log-probabilities are compressed little-endian arrays; media given as bytes are kept once,
by their hash.
"""

import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from lightrft_core.data import Group, Media
from lightrft_core.errors import UserError
from lightrft_core.stored_rollout import Phase, StoredRollout, from_row, packed, storable, to_row

logger = logging.getLogger(__name__)
Order = Literal["step", "reward", "length"]

_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS media (sha256 TEXT PRIMARY KEY, kind TEXT NOT NULL, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS prompts (
    key INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, prompt_id TEXT NOT NULL, messages TEXT NOT NULL,
    media TEXT NOT NULL, reference TEXT, label TEXT, token_ids BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS rollouts (
    id INTEGER PRIMARY KEY, step INTEGER NOT NULL, phase TEXT NOT NULL, prompt INTEGER NOT NULL REFERENCES prompts,
    sibling INTEGER NOT NULL, text TEXT NOT NULL, token_ids BLOB NOT NULL, logprobs BLOB NOT NULL, mask BLOB,
    length INTEGER NOT NULL, reward REAL, shaped_reward REAL, scores TEXT NOT NULL, unscored TEXT,
    finish_reason TEXT NOT NULL, policy_version INTEGER NOT NULL, seed INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS rollouts_by_step ON rollouts (step);
CREATE INDEX IF NOT EXISTS rollouts_by_reward ON rollouts (reward);
CREATE INDEX IF NOT EXISTS rollouts_by_prompt ON rollouts (prompt);
CREATE INDEX IF NOT EXISTS prompts_by_id ON prompts (prompt_id);
"""
_ORDERS: Final[Mapping[str, str]] = {
    "step": "r.step DESC, r.id",
    "reward": "r.reward IS NULL, r.reward DESC, r.id",
    "length": "r.length DESC, r.id",
}
_WAIT_SECONDS: Final = 30.0
_PAUSE_SECONDS: Final = 0.01


@dataclass(frozen=True, slots=True)
class Query:
    """Which rollouts: every condition that is given must hold. `text` is looked for in the response, case ignored."""

    step: int | None = None
    min_reward: float | None = None
    max_reward: float | None = None
    text: str | None = None
    prompt_id: str | None = None
    phase: Phase | None = None

    def where(self) -> tuple[str, list[object]]:
        """An SQL condition over `rollouts r` and `prompts p`, and its values."""
        wanted = None if self.text is None else f"%{_escaped(self.text)}%"
        given: list[tuple[str, object]] = [
            ("r.step = ?", self.step),
            ("r.reward >= ?", self.min_reward),
            ("r.reward <= ?", self.max_reward),
            ("r.text LIKE ? ESCAPE '\\'", wanted),
            ("p.prompt_id = ?", self.prompt_id),
            ("r.phase = ?", self.phase),
        ]
        used = [(condition, value) for condition, value in given if value is not None]
        return " AND ".join(condition for condition, _ in used) or "1", [value for _, value in used]


class RolloutStore:
    """The store at `path`, made where it does not exist; with `readonly` it is only looked at, by any number."""

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        self.path = path
        try:
            self._db = _patiently(_open_reader if readonly else _open_writer, path)
        except sqlite3.Error as error:
            raise UserError(f"the rollout store cannot be opened: {error}", where=str(path)) from None

    def add(self, step: int, groups: Sequence[Group], *, phase: Phase = "train") -> None:
        """Keep the rollouts of one step, all or none.

        The store is for reading, not for training: where it cannot be written (a full disk), a warning says what is
        missing and the run goes on.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for group in groups:
                prompt = self._prompt_key(group)
                rows = [to_row(step, phase, prompt, rollout) for rollout in group.rollouts]
                self._db.executemany(f"INSERT INTO rollouts VALUES (NULL{', ?' * 16})", rows)  # noqa: S608
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            count = sum(len(group.rollouts) for group in groups)
            logger.warning("%d rollouts of step %d are not in %s: %s", count, step, self.path, error)

    def truncate(self, after_step: int, *, keep_evaluation: bool = True) -> None:
        """Drop what was added after `after_step`, as a resumed run does; see `metrics_file.truncate_metrics`."""
        self._db.execute("DELETE FROM rollouts WHERE step > ?", (after_step,))
        if not keep_evaluation:
            self._db.execute("DELETE FROM rollouts WHERE step = ? AND phase = 'eval'", (after_step,))

    def search(
        self,
        step: int | None = None,
        min_reward: float | None = None,
        max_reward: float | None = None,
        text: str | None = None,
        prompt_id: str | None = None,
        limit: int = 20,
        order: Order = "step",
        phase: Phase | None = None,
    ) -> list[StoredRollout]:
        """Rollouts for which all given conditions hold; see `find`."""
        return self.find(Query(step, min_reward, max_reward, text, prompt_id, phase), limit=limit, order=order)

    def find(self, query: Query, *, limit: int = 20, order: Order = "step") -> list[StoredRollout]:
        """At most `limit` rollouts (below 0: all): the newest step, highest reward or longest completion first."""
        condition, values = query.where()
        rows = self._db.execute(
            "SELECT r.id, step, phase, prompt_id, messages, media, reference, label, p.token_ids AS prompt_token_ids, "  # noqa: S608
            "sibling, text, r.token_ids AS token_ids, logprobs, mask, reward, shaped_reward, scores, unscored, "
            "finish_reason, policy_version, seed FROM rollouts r JOIN prompts p ON p.key = r.prompt "
            f"WHERE {condition} ORDER BY {_ORDERS[order]} LIMIT ?",
            [*values, limit],
        )
        return [from_row(row) for row in rows]

    def count(self, query: Query) -> int:
        """How many there are."""
        condition, values = query.where()
        table = "rollouts r JOIN prompts p ON p.key = r.prompt"
        return int(self._db.execute(f"SELECT count(*) FROM {table} WHERE {condition}", values).fetchone()[0])  # noqa: S608

    def steps(self) -> list[int]:
        """Steps that have rollouts."""
        return [row[0] for row in self._db.execute("SELECT DISTINCT step FROM rollouts ORDER BY step")]

    def media(self, name: str) -> bytes:
        """The bytes behind a `sha256:...` of `StoredRollout.media`; `KeyError` where they are not kept."""
        row = self._db.execute("SELECT data FROM media WHERE sha256 = ?", (name.removeprefix("sha256:"),)).fetchone()
        if row is None:
            raise KeyError(name)
        return bytes(row[0])

    def close(self) -> None:
        """End; the last writer leaves one plain file behind, which can be copied and read from read-only folders."""
        try:
            if not self._db.execute("PRAGMA query_only").fetchone()[0]:
                self._db.execute("PRAGMA busy_timeout = 0")
                self._db.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.OperationalError:
            logger.debug("%s is still being read; its write-ahead log stays", self.path)
        self._db.close()

    def _prompt_key(self, group: Group) -> int:
        prompt = group.prompt
        messages = json.dumps([dict(message) for message in prompt.messages])
        media = json.dumps([self._media_entry(media) for media in prompt.media])
        prompt_id, reference, label = storable(prompt.id), storable(prompt.reference), storable(prompt.label)
        token_ids = packed("i", group.prompt_token_ids)
        content = [prompt_id, messages, media, reference, label, token_ids.hex()]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        row = (digest, prompt_id, messages, media, reference, label, token_ids)
        self._db.execute("INSERT OR IGNORE INTO prompts VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", row)
        return int(self._db.execute("SELECT key FROM prompts WHERE digest = ?", (digest,)).fetchone()[0])

    def _media_entry(self, media: Media) -> dict[str, str]:
        if isinstance(media.source, str):
            return {"kind": media.kind, "source": media.source}
        digest = hashlib.sha256(media.source).hexdigest()
        self._db.execute("INSERT OR IGNORE INTO media VALUES (?, ?, ?)", (digest, media.kind, media.source))
        return {"kind": media.kind, "source": f"sha256:{digest}"}


def _patiently(opening: Callable[[Path], sqlite3.Connection], path: Path) -> sqlite3.Connection:
    """Changing the journal's mode takes a lock for which SQLite itself does not wait."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            return opening(path)
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_SECONDS)


def _open_writer(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    _check_version(db, path, fresh=True)
    db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
    return db


def _open_reader(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise UserError(
            "there is no rollout store.",
            where=str(path),
            hint="The run saved none (`rollouts.save`), or has not begun.",
        )
    try:
        db = _connect_reader(path, "mode=ro")
    except sqlite3.OperationalError:
        if path.with_name(f"{path.name}-wal").exists():
            raise UserError(
                "part of the rollouts is still in the write-ahead log, which cannot be read in a read-only folder.",
                where=str(path),
                hint="Copy the run to a folder that you may write to.",
            ) from None
        db = _connect_reader(path, "immutable=1")
    _check_version(db, path, fresh=False)
    return db


def _connect_reader(path: Path, options: str) -> sqlite3.Connection:
    db = sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True, timeout=_WAIT_SECONDS, isolation_level=None)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA query_only = 1")
    db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return db


def _check_version(db: sqlite3.Connection, path: Path, *, fresh: bool) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version != _VERSION and not (fresh and version == 0):
        raise UserError(f"it is no rollout store of version {_VERSION} (but {version})", where=str(path))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
