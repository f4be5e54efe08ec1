"""What one checkpoint holds beside a strategy's files: the state of its run, or none where it is weights alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lightrft_core.protocols import Json
from lightrft_core.seal import Damaged, read_manifest, verify

STATE: Final = "state.json"
EXPORT: Final = "hf"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint: every file of it has the size and hash that were sealed when it was written.

    `state` is None where it holds the policy's weights alone.
    """

    path: Path
    step: int
    state: Json

    @property
    def is_resumable(self) -> bool:
        """Whether a run can go on from it."""
        return self.state is not None


def read_share(path: Path, rank: int, size: int) -> tuple[Checkpoint | None, str | None]:
    """A checkpoint of whose files this rank's share was read and hashed, or what is wrong with it."""
    try:
        verify(path, rank, size)
        state = None if is_weights_alone(path) else json.loads((path / STATE).read_text(encoding="utf-8"))
        return Checkpoint(path, step_of(path), state), None
    except (Damaged, OSError, ValueError) as problem:
        return None, str(problem)


def is_weights_alone(path: Path) -> bool:
    """Whether a checkpoint was written without what a run goes on from; of a damaged one it is not known."""
    try:
        return STATE not in read_manifest(path)["files"]
    except (Damaged, OSError):
        return False


def step_of(path: Path) -> int:
    """The step that its folder is named after."""
    return int(path.name.rsplit("_", 1)[1])


def start_from(path: Path) -> str:
    """What to do with a checkpoint that is weights alone."""
    run_file = path.parent.parent / "run.yaml"
    sets = f"--set model.path={path / EXPORT} --set run.name=NEW_NAME"
    return f"Start another run from these weights: `lightrft train {run_file} {sets}`."


def state_text(value: Json) -> str:
    """State as JSON. Raises `TypeError` for what would not come back the same."""
    _check_keys(value)
    return json.dumps(value, separators=(",", ":"))


def _check_keys(value: Json, place: str = "state") -> None:
    """JSON would quietly turn the key 3 into "3"; a resumed run would then look for 3 in vain."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{place} has the key {key!r}; checkpoint state takes text keys only")
            _check_keys(item, f"{place}.{key}")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            _check_keys(item, place)
