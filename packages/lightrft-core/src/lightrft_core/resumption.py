"""Going on with a run under other settings: what cannot change, and a note of what did.

Where and on how many processes a run goes on is free: its numbers stay the same within rounding. Other settings make it
another run from there on, which the manifest's `resumed` tells.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import yaml

from lightrft_core.checkpoints import Checkpoints
from lightrft_core.contents import start_from
from lightrft_core.errors import UserError
from lightrft_core.flat_keys import flat_run_file, flatten
from lightrft_core.manifest import ABSENT
from lightrft_core.protocols import Json
from lightrft_core.redaction import redact
from lightrft_core.rundir import RunDir
from lightrft_core.runfile import RunFile

Changes = dict[str, list[Json]]  # dotted key -> the value before and the value now
FIXED: Final = {"run.seed": "the order of its prompts and all that is drawn come from it"}
PENDING: Final = "changed"
_IN_ORDER: Final = ("filters", "shapers", "callbacks")
_FREE: Final = (  # where a run goes on, how long, and what is kept and told of it
    *("run", "strategy", "checkpoint", "evaluation", "selftest", "engine_gap", "rollouts", "plots", "trackers"),
    "callbacks",
)


def require_resumable(run_dir: RunDir) -> None:
    """`UserError` where all checkpoints of a run are weights alone; without any it starts from step 0."""
    checkpoints = Checkpoints(run_dir.checkpoints, keep=1)
    alone = checkpoints.weights_alone()
    if alone and not checkpoints.steps(resumable=True):
        raise unresumable(alone[0])


def unresumable(newest: Path) -> UserError:
    """What is said of a run whose checkpoints are all weights alone; this is the newest."""
    return UserError(
        "holds the policy's weights alone, since checkpoint.resumable is false: no optimizer state and no state of the "
        "run to go on from.",
        where=str(newest),
        hint=start_from(newest),
    )


def changes(run_dir: RunDir, run_file: RunFile) -> Changes:
    """What a run file says otherwise than the run's own. `UserError` for what cannot change.

    Options that come and go with another component are left out, unless somebody wrote them.
    """
    before, now = flat_run_file(run_dir), flatten(yaml.safe_load(redact(run_file.to_yaml())))
    pairs = {key: [before.get(key, ABSENT), now.get(key, ABSENT)] for key in (*before, *now)}
    differing = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    found = {key: pair for key, pair in differing.items() if _says_something(key, differing, run_file.origins)}
    found |= _moved(before, now)
    for key in (key for key in FIXED if key in found):
        raise UserError(
            f"a run that goes on keeps its value, which is {found[key][0]}: {FIXED[key]}.",
            where=key,
            hint="Leave it out, or start another run.",
        )
    return found


def deciding(found: Changes) -> Changes:
    """Those that the numbers depend on."""
    return {key: pair for key, pair in found.items() if re.split(r"[.\[]", key)[0] not in _FREE}


def note_changes(run_dir: RunDir, found: Changes) -> None:
    """Keep them in the manifest until the run has gone on."""
    manifest = run_dir.read_manifest()
    pending: Changes = manifest.get(PENDING, {})
    for key, (old, new) in found.items():
        pending[key] = [pending.get(key, [old])[0], new]
    run_dir.write_manifest({**manifest, PENDING: {key: pair for key, pair in pending.items() if pair[0] != pair[1]}})


def history(before: Mapping[str, Json], step: int, world_size: int) -> list[Json]:
    """The manifest's `resumed` for a run that goes on at a step; `before` is the manifest that it had."""
    changed: Changes = dict(before.get(PENDING, {}))
    if before.get("world_size", world_size) != world_size:
        changed["processes"] = [before["world_size"], world_size]
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return [*before.get("resumed", []), {"at": when, "step": step, "changed": changed}]


def told(changed: Changes) -> str:
    """`strategy.use single -> fsdp2, processes 1 -> 2`."""
    return ", ".join(f"{key} {old} -> {new}" for key, (old, new) in changed.items())


def _says_something(key: str, differing: Changes, written: Collection[str]) -> bool:
    """Not an empty section beside the parts that it had, nor an option that nobody wrote beside its component."""
    if ABSENT not in differing[key] or key.endswith(".use"):
        return True
    if any(other.startswith((f"{key}.", f"{key}[")) for other in differing):
        return False
    return key in written or f"{key.rpartition('.')[0]}.use" not in differing


def _moved(before: Iterable[str], now: Iterable[str]) -> Changes:
    """Sections of which the parts that both have come in another order, where that decides."""
    found: Changes = {}
    for section in _IN_ORDER:
        old, new = _parts(section, before), _parts(section, now)
        old, new = [part for part in old if part in new], [part for part in new if part in old]
        if old != new:
            found[section] = [", ".join(old), ", ".join(new)]
    return found


def _parts(section: str, keys: Iterable[str]) -> list[str]:
    return [key[len(section) + 1 : -len("].use")] for key in keys if re.fullmatch(rf"{section}\[[^]]+\]\.use", key)]
