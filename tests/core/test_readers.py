"""Data files: each format, and what is said about a file or row that cannot be read."""

import csv
import json
import sys
from pathlib import Path

import pytest
from lightrft_core.errors import EnvironmentUnfit, UserError
from lightrft_core.tasks.readers import BadRow, Row, data_files, read_rows

ROWS = [{"prompt": "a", "n": 1}, {"prompt": "b\nline", "n": 2}]


def read(file: Path, split: str | None = None) -> list:
    return [row.data if isinstance(row, Row) else (row.number, row.problem) for row in read_rows(file, split)]


def test_jsonl_rows_are_numbered_by_line_and_blank_lines_left_out(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("\ufeff" + json.dumps(ROWS[0]) + "\n\n" + json.dumps(ROWS[1]) + "\n", encoding="utf-8")
    rows = list(read_rows(file, None))
    assert [row.data for row in rows] == ROWS
    assert [row.where for row in rows] == [f"{file}:1", f"{file}:3"]


def test_bad_jsonl_rows_are_named_with_what_is_wrong(tmp_path):
    file = tmp_path / "a.jsonl"
    lines = [b'{"prompt": "a"', b"[1, 2]", b'{"prompt": "\xff"}', b"null", b"[" * 100_000, b'{"prompt": "ok"}']
    file.write_bytes(b"\n".join(lines))
    found = list(read_rows(file, None))
    assert [type(row) for row in found] == [BadRow] * 5 + [Row]
    problems = [row.problem for row in found[:5]]
    assert problems[0].startswith("not JSON: Expecting ',' delimiter, column 15")
    assert problems[1] == "expected an object with columns, found list"
    assert problems[2] == "not UTF-8 (byte 12)"
    assert problems[3] == "expected an object with columns, found NoneType"
    assert problems[4] == "JSON nested too deeply"
    assert found[0].where == f"{file}:1"


def test_json_may_be_a_list_or_splits_or_lines(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps(ROWS))
    (tmp_path / "splits.json").write_text(json.dumps({"train": ROWS, "test": ROWS[:1]}))
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, ROWS)))
    assert read(tmp_path / "list.json") == ROWS
    assert read(tmp_path / "splits.json") == ROWS
    assert read(tmp_path / "splits.json", "test") == ROWS[:1]
    assert read(tmp_path / "lines.json") == ROWS
    with pytest.raises(UserError, match=r"Set task\.split to one of its keys: train, test"):
        read(tmp_path / "splits.json", "validation")


def test_broken_json_names_file_and_line(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('[\n{"a": 1},\n{"b": }\n]')
    with pytest.raises(UserError, match=rf"{file}:3: not JSON"):
        read(file)


def test_csv_rows_and_a_row_with_missing_cells(tmp_path):
    file = tmp_path / "a.csv"
    with file.open("w", newline="") as lines:
        csv.writer(lines).writerows([["prompt", "n"], ["a", "1"], ["b\nline", "2"], ["c"], ["d", "4", "5"]])
    assert read(file) == [
        {"prompt": "a", "n": "1"},
        {"prompt": "b\nline", "n": "2"},
        (5, "expected 2 cells, found 1"),
        (6, "expected 2 cells, found 3"),
    ]


def test_parquet_rows_with_nested_columns_and_bytes(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"prompt": [{"role": "user", "content": "a"}], "images": [{"bytes": b"\x89", "path": None}]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == rows
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"b\.parquet: not a readable parquet file"):
        read(tmp_path / "b.parquet")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(EnvironmentUnfit, match=r"uv pip install 'lightrft-core\[data\]'"):
        read(tmp_path / "a.parquet")


def test_a_folder_gives_the_files_of_a_split_in_order(tmp_path):
    for name in (
        "train-00001-of-00002.jsonl",
        "train-00000-of-00002.jsonl",
        "test.jsonl",
        "training.jsonl",
        "README.md",
    ):
        (tmp_path / name).touch()
    assert [file.name for file in data_files(str(tmp_path), None)] == [
        "train-00000-of-00002.jsonl",
        "train-00001-of-00002.jsonl",
    ]
    assert data_files(str(tmp_path), "test") == [tmp_path / "test.jsonl"]


def test_a_missing_split_is_an_error_that_lists_what_is_there(tmp_path):
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(UserError) as caught:
        data_files(str(tmp_path), "validation")
    assert "has no split 'validation'; it holds train.jsonl" in str(caught.value)
    assert "task.split" in str(caught.value)


def test_a_file_named_after_a_split_stands_for_its_folder(tmp_path):
    for name in ("train.jsonl", "test.jsonl", "mine.jsonl"):
        (tmp_path / name).touch()
    assert data_files(str(tmp_path / "train.jsonl"), None) == [tmp_path / "train.jsonl"]
    assert data_files(str(tmp_path / "train.jsonl"), "test") == [tmp_path / "test.jsonl"]
    assert data_files(str(tmp_path / "mine.jsonl"), "test") == [tmp_path / "mine.jsonl"]
    with pytest.raises(UserError, match="no split 'dev'"):
        data_files(str(tmp_path / "train.jsonl"), "dev")


def test_a_hub_name_or_missing_file_says_how_to_export(tmp_path):
    with pytest.raises(UserError) as caught:
        data_files("openai/gsm8k", "test")
    assert "there is no file or folder 'openai/gsm8k'" in str(caught.value)
    assert "datasets.load_dataset('openai/gsm8k')['test'].to_parquet('test.parquet')" in str(caught.value)


def test_an_unknown_ending_lists_the_known_ones(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=r"Known endings: \.jsonl, \.ndjson, \.json, \.csv, \.parquet"):
        data_files(str(tmp_path / "a.txt"), None)


def test_a_missing_file_is_not_taken_for_a_data_set_on_a_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"no file or folder 'gone\.jsonl'\. Looked from {tmp_path}\."):
        data_files("gone.jsonl", None)
    with pytest.raises(UserError, match=r"load_dataset\('openai/gsm8k'\)\['train'\]"):
        data_files("openai/gsm8k", None)
