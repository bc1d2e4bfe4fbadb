"""Files of every kind come out as the same rows, each with its line number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.core.errors import DataError
from stillhouse.data.readers import find_splits, read

ROWS = [('a, "b"', "x"), ("two\nlines", "y"), ("tab\there", "x")]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(path: Path) -> list[tuple[Any, Any]]:
    return [(row["text"], row["label"]) for _, row in read(path)]


def test_csv_jsonl_and_parquet_hold_the_same_rows(tmp_path: Path) -> None:
    quoted = [f'"{t.replace(chr(34), chr(34) * 2)}"' for t, _ in ROWS]
    labels = [label for _, label in ROWS]
    lines = [f"{t},{label}" for t, label in zip(quoted, labels, strict=True)]
    assert table(write(tmp_path / "a.csv", "\n".join(["text,label", *lines]) + "\n")) == ROWS
    objects = [json.dumps({"text": t, "label": label}) for t, label in ROWS]
    assert table(write(tmp_path / "a.jsonl", "\n".join(objects))) == ROWS
    columns = {"text": [t for t, _ in ROWS], "label": labels}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert table(tmp_path / "a.parquet") == ROWS


def test_text_is_one_row_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one\ntwo\u2028still two\r\n\nlast")
    assert [(n, row["text"]) for n, row in read(path)] == [
        (1, "one"),
        (2, "two\u2028still two"),
        (3, ""),
        (4, "last"),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\na,x\n"),
        ("a.tsv", "text\tlabel\na\tx\n"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n'),
    ],
)
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path / name, b"\xef\xbb\xbf" + content.encode())
    assert table(path) == [("a", "x")]


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfa\nb\n")
    assert [row["text"] for _, row in read(path)] == ["a", "b"]


def test_crlf_is_a_line_end(tmp_path: Path) -> None:
    assert table(write(tmp_path / "a.csv", "text,label\r\na,x\r\nb,y\r\n")) == [
        ("a", "x"),
        ("b", "y"),
    ]
    lines = '{"text": "a", "label": "x"}\r\n{"text": "b", "label": "y"}\r\n'
    assert table(write(tmp_path / "a.jsonl", lines)) == [("a", "x"), ("b", "y")]


def test_a_row_is_known_by_the_line_it_starts_on(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\na,x\n"b\nb",y\n\n"c\n\nc",y\nd,x\n')
    assert [(line, row["text"]) for line, row in read(path)] == [
        (2, "a"),
        (3, "b\nb"),
        (6, "c\n\nc"),
        (9, "d"),
    ]


def test_jsonl_lines_are_counted_with_the_empty_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n\n{"text": "b"}\n')
    assert [line for line, _ in read(path)] == [1, 3]


def test_bytes_that_are_not_utf8_arrive_as_lone_surrogates(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"text,label\ncaf\xe9,x\n")
    assert table(path) == [("caf\udce9", "x")]
    path = write(tmp_path / "a.jsonl", b'{"text": "caf\xe9", "label": "x"}\n')
    assert table(path) == [("caf\udce9", "x")]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', "line 2"),
        ("a.csv", b"text,text\na,b\n", "two columns of the same name"),
        ("a.parquet", b"PAR1 not really", "is not Parquet"),
        ("a.xlsx", b"", "spreadsheet"),
        ("a.csv", "text,label\na,b\n".encode("utf-16"), "UTF-16"),
        ("a.json", b'[{"text": "a"}, ["b"]]', "line 1: a row is an object"),
        ("a.json", b'[{"text": "a"}\n{"text": "b"}]', "line 2 is not JSON: a comma"),
        ("a.json", b'[{"text": "a"}]\n{"text": "b"}', "line 2 has more after the end"),
        ("a.json", b'[\n{"text": "a"},\n{"text": ]', "line 3 is not JSON"),
        ("a.json", b'{"data": [\n{"text": "a"}]}', "an object goes over several lines"),
        ("a.csv", "text,label\na,b\n".encode("utf-16-le"), "zero bytes"),
        ("a.jsonl", b'{"text": ' + b"1" * 5000 + b"}\n", "line 1 is not JSON that can be read"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "line 1 is not JSON that can be read"),
        ("a.docx", b"", "can't read .docx"),
        ("noend", b"", "without suffix"),
    ],
)
def test_a_file_of_a_broken_form_is_one_line(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        list(read(write(tmp_path / name, content)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_of_objects_is_rows_by_the_line_they_begin_on(
    tmp_path: Path, name: str, indent: int | None
) -> None:
    objects = [{"text": t, "label": label} for t, label in ROWS]
    path = write(tmp_path / name, "\ufeff \n" + json.dumps(objects, indent=indent) + "\n")
    assert table(path) == ROWS
    assert [line for line, _ in read(path)] == ([2] * 3 if indent is None else [3, 7, 11])
    assert list(read(write(tmp_path / "none.json", "[ ]"))) == []


def test_rows_of_a_file_can_be_gone_through_again(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "a.jsonl", '{"text": "a"}\n'))
    assert list(rows) == list(rows) == [(1, {"text": "a"})]


def test_parquet_that_ends_early_is_one_line(tmp_path: Path) -> None:
    columns = {"text": [f"text {i}" for i in range(9000)]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=8500)
    whole = (tmp_path / "a.parquet").read_bytes()
    path = write(tmp_path / "b.parquet", whole[:200] + b"\xff" * 400 + whole[600:])
    with pytest.raises(DataError, match="is not Parquet that can be read") as caught:
        list(read(path))
    assert "\n" not in str(caught.value)


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.txt"):
        assert list(read(write(tmp_path / name, ""))) == []


def test_find_splits_knows_the_usual_names(tmp_path: Path) -> None:
    for name in ("training.csv", "validation.tsv", "test.jsonl"):
        (tmp_path / name).touch()
    found = {split: path.name for split, path in find_splits(tmp_path).items()}
    assert found == {"train": "training.csv", "dev": "validation.tsv", "test": "test.jsonl"}


def test_find_splits_refuses_to_guess(tmp_path: Path) -> None:
    (tmp_path / "notes.md").touch()
    with pytest.raises(DataError, match=r"no train file .* it holds notes\.md"):
        find_splits(tmp_path)
    (tmp_path / "train.csv").touch()
    (tmp_path / "train.tsv").touch()
    with pytest.raises(
        DataError, match=r"several train files \(train\.csv, train\.tsv\): keep one"
    ):
        find_splits(tmp_path)
    (tmp_path / "train.tsv").unlink()
    (tmp_path / "dev.csv").touch()
    (tmp_path / "validation.csv").touch()
    with pytest.raises(DataError, match=r"several dev files \(dev\.csv, validation\.csv\)"):
        find_splits(tmp_path)


def test_a_quote_in_a_tsv_is_a_letter(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text('text\tlabel\n"open\tx\nclose"\ty\n')
    assert list(read(path)) == [
        (2, {"text": '"open', "label": "x"}),
        (3, {"text": 'close"', "label": "y"}),
    ]
