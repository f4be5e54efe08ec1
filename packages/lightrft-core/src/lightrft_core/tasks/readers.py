"""Rows of data files, each with the place it came from. A bad row is a value, so that the caller may skip or refuse it.

Formats: `.jsonl` (also `.ndjson`), `.json` (a list, or an object whose values are lists by split), `.csv`, `.parquet`,
and a folder that holds such files under the name of a split: `train.jsonl`, `train-00000-of-00002.parquet`.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightrft_core.errors import EnvironmentUnfit, UserError

SPLITS = frozenset({"train", "test", "val", "valid", "validation", "dev", "eval"})
DEFAULT_SPLIT = "train"
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its file, its number from 1 (the line, where the format has lines), its columns."""

    file: Path
    number: int
    data: Mapping[str, Any]  # Any: what the file holds

    @property
    def where(self) -> str:
        """`file:number`, as error messages show it."""
        return f"{self.file}:{self.number}"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be read, and why."""

    file: Path
    number: int
    problem: str

    @property
    def where(self) -> str:
        """`file:number`, as error messages show it."""
        return f"{self.file}:{self.number}"


Rows = Iterator[Row | BadRow]


def data_files(path: str, split: str | None) -> list[Path]:
    """The files that a path means: itself, or those of a split (`train` by default) in a folder.

    A file that is itself named after a split (`train.jsonl`) stands for its folder where another split is asked for.
    Raises `UserError` where there is no such file.
    """
    real = Path(path).expanduser()
    if real.is_file():
        if real.suffix.lower() not in SUFFIXES:
            raise UserError(f"{real} is no data file", where="task.path", hint=f"Known endings: {', '.join(SUFFIXES)}.")
        is_other_split = split is not None and split_of(real) not in (None, split)
        return _files_of_split(real.parent, str(split)) if is_other_split else [real]
    if real.is_dir():
        return _files_of_split(real, split or DEFAULT_SPLIT)
    split = split or DEFAULT_SPLIT
    if real.suffix.lower() in SUFFIXES or real.is_absolute():
        raise UserError(f"there is no file or folder {path!r}", where="task.path", hint=f"Looked from {Path.cwd()}.")
    raise UserError(
        f"there is no file or folder {path!r}",
        where="task.path",
        hint="Data sets are not fetched from a hub: export the split to a file first, for example "
        f"`datasets.load_dataset({path!r})[{split!r}].to_parquet('{split}.parquet')`, and name that file.",
    )


def split_of(file: Path) -> str | None:
    """The split that a file is named after, or None: `train` of `train-00000-of-00002.parquet`."""
    name = re.split(r"[-_.]", file.name)[0]
    return name if name in SPLITS else None


def read_rows(file: Path, split: str | None) -> Rows:
    """Every row of one file, in order; `split` chooses in a `.json` object of splits.

    Raises `UserError` where the file as a whole cannot be read.
    """
    readers: dict[str, Callable[[Path], Rows]] = {
        ".jsonl": _read_jsonl,
        ".ndjson": _read_jsonl,
        ".json": lambda path: _read_json(path, split or DEFAULT_SPLIT),
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    return readers[file.suffix.lower()](file)


def _files_of_split(folder: Path, split: str) -> list[Path]:
    candidates = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    if not candidates and (folder / "data").is_dir():
        return _files_of_split(folder / "data", split)
    found = [file for file in candidates if file.stem == split or file.stem.startswith((f"{split}-", f"{split}_"))]
    if found:
        return found
    present = ", ".join(file.name for file in candidates[:8]) or f"no data files ({', '.join(SUFFIXES)})"
    raise UserError(
        f"{folder} has no split {split!r}; it holds {present}",
        where="task.split",
        hint=f"Name another split, or a file: `path: {candidates[0] if candidates else folder / (split + '.jsonl')}`.",
    )


def _read_jsonl(file: Path) -> Rows:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _parsed(file, number, line.rstrip().removeprefix(b"\xef\xbb\xbf"))


def _parsed(file: Path, number: int, line: bytes) -> Row | BadRow:
    try:
        data = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(file, number, f"not UTF-8 (byte {error.start})")
    except json.JSONDecodeError as error:
        return BadRow(file, number, f"not JSON: {error.msg}, column {error.colno}")
    except RecursionError:
        return BadRow(file, number, "JSON nested too deeply")
    return _checked(file, number, data)


def _checked(file: Path, number: int, data: object) -> Row | BadRow:
    if isinstance(data, dict):
        return Row(file, number, data)
    return BadRow(file, number, f"expected an object with columns, found {type(data).__name__}")


def _read_json(file: Path, split: str) -> Rows:
    try:
        whole = json.loads(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 (byte {error.start})", where=str(file)) from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # one object a line under the name .json
            yield from _read_jsonl(file)
            return
        if not file.stat().st_size:
            return
        raise UserError(f"not JSON: {error.msg}", where=f"{file}:{error.lineno}") from error
    if isinstance(whole, dict) and isinstance(whole.get(split), list):
        whole = whole[split]
    if isinstance(whole, dict) and not any(isinstance(value, list) for value in whole.values()):
        whole = [whole]
    if not isinstance(whole, list):
        raise UserError(
            f"expected a list of rows, or an object with a list under {split!r}",
            where=str(file),
            hint="Set task.split to one of its keys: " + ", ".join(map(str, whole)) if isinstance(whole, dict) else "",
        )
    for number, data in enumerate(whole, start=1):
        yield _checked(file, number, data)


def _read_csv(file: Path) -> Rows:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        try:
            for data in reader:
                yield _csv_row(file, reader.line_num, data, len(reader.fieldnames or ()))
        except csv.Error as error:
            raise UserError(f"not CSV: {error}", where=f"{file}:{reader.line_num}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"not UTF-8 (byte {error.start})", where=f"{file}:{reader.line_num + 1}") from error


def _csv_row(file: Path, number: int, data: dict[str | Any, Any], num: int) -> Row | BadRow:  # Any: csv's own types
    if None in data or any(value is None for value in data.values()):
        found = sum(value is not None for name, value in data.items() if name is not None) + len(data.get(None) or ())
        return BadRow(file, number, f"expected {num} cells, found {found}")
    return Row(file, number, data)


def _read_parquet(file: Path) -> Rows:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise EnvironmentUnfit(
            "parquet files need pyarrow, which is not installed",
            where=str(file),
            hint="Install it: uv pip install 'lightrft-core[data]'.",
        ) from error
    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                for data in batch.to_pylist():
                    number += 1
                    yield Row(file, number, data)
    except (ArrowException, OSError) as error:
        raise UserError(f"not a readable parquet file: {error}", where=str(file)) from error
