"""metrics.jsonl: one JSON object per step or evaluation, `{"step": 3, "reward/mean": 0.4, "seconds/train": 1.2, ...}`.

A number that is not finite is written as null. The file belongs to the checkpointed past: a resumed run first cuts it
back to its checkpoint, so that it ends up as if nothing had happened.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from lightrft_core.durable import replace_text
from lightrft_core.protocols import Json

Series = dict[str, list[tuple[int, float]]]


def metrics_line(step: int, metrics: Mapping[str, float]) -> str:
    """One line of the file, line break included."""
    numbers = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    return json.dumps({"step": step, **numbers}, allow_nan=False) + "\n"


def read_metrics(path: Path) -> Series:
    """Every metric's (step, value) pairs in file order; empty without a file. A torn last line is left out."""
    series: Series = {}
    for _, record in _records(path):
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                series.setdefault(name, []).append((record["step"], float(value)))
    return series


def truncate_metrics(path: Path, after_step: int, *, keep_evaluation: bool = True) -> None:
    """Drop what was logged after `after_step`, and a torn last line; the rest stays byte for byte.

    Without `keep_evaluation` the evaluation of `after_step` itself goes too: its checkpoint was saved before it.
    """

    def is_past(record: dict[str, Json]) -> bool:
        is_evaluation = any(name.startswith("eval/") for name in record)
        return bool(record["step"] < after_step + (keep_evaluation or not is_evaluation))

    if path.exists():
        replace_text(path, "".join(line for line, record in _records(path) if is_past(record)))


def _records(path: Path) -> Iterator[tuple[str, dict[str, Json]]]:
    if not path.exists():
        return
    for line in path.read_bytes().decode("utf-8", errors="replace").splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if line.endswith("\n") and isinstance(record, dict) and isinstance(record.get("step"), int):
            yield line, record
