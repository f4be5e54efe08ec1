"""What SGLang leaves on the machine when its processes end."""

from pathlib import Path
from typing import Any


def remove_loads(manager: Any) -> None:  # Any: SGLang's tokenizer manager
    """The file in shared memory in which its schedulers told how busy they were; none of its processes removes it."""
    from sglang.srt.managers.load_snapshot import ShmLoadSnapshotReader

    if isinstance(manager.load_snapshot_reader, ShmLoadSnapshotReader):
        Path(manager.load_snapshot_reader.path).unlink(missing_ok=True)
