"""Rows of a file, one at a time: CSV, TSV, JSONL, Parquet, plain text, or a hub data set."""

from __future__ import annotations

import codecs
import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from stillhouse.core.errors import DataError

Row = tuple[int, dict[str, Any]]  # line number (1-based; the row number where there are no lines)
SPLITS = {
    "train": ("train", "training"),
    "dev": ("dev", "validation", "valid", "val", "eval"),
    "test": ("test",),
}


def _delimited(delimiter: str, quoting: Literal[0, 3]) -> Callable[[Path], Iterator[Row]]:
    def read(path: Path) -> Iterator[Row]:
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, quoting=quoting)
            header = next(reader, None)
            if header is None:
                return
            names = [name.strip() for name in header]
            if len(set(names)) != len(names):
                raise DataError(f"{path} has two columns of the same name: {', '.join(names)}")
            last = reader.line_num
            try:
                for fields in reader:
                    line, last = last + 1, reader.line_num
                    if not fields:
                        continue
                    row: dict[str, Any] = dict(zip(names, fields, strict=False))
                    if len(fields) != len(names):
                        row["\x00fields"] = len(fields)
                    yield line, row
            except csv.Error as error:
                raise DataError(f"{path} line {reader.line_num}: {error}") from None

    return read


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            if line == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if not raw.strip():
                continue
            try:
                value = json.loads(raw.decode("utf-8", "surrogateescape"))
            except json.JSONDecodeError as error:
                raise DataError(f"{path} line {line} is not JSON: {error.msg}") from None
            except (ValueError, RecursionError):  # a number too long, brackets too deep
                raise DataError(f"{path} line {line} is not JSON that can be read") from None
            if isinstance(value, list) and line == 1:
                raise DataError(f"{path} is one JSON array: write one object a line (JSONL)")
            if not isinstance(value, dict):
                raise DataError(f'{path} line {line}: a row is an object such as {{"text": ...}}')
            yield line, value


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not Parquet: {str(error).splitlines()[0]}") from None
    number = 0
    for batch in file.iter_batches(batch_size=8192):
        for row in batch.to_pylist():
            number += 1
            yield number, row


def _text(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for line, text in enumerate(file, 1):
            yield line, {"text": text.rstrip("\n")}


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _delimited(",", csv.QUOTE_MINIMAL),
    ".tsv": _delimited("\t", csv.QUOTE_NONE),  # a quote there is a letter like any other
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _jsonl,
    ".parquet": _parquet,
    ".txt": _text,
}


def read(path: Path) -> Iterator[Row]:
    """(line, columns) of every row of `path`. Bytes that are not UTF-8 come as lone surrogates.

    Raises DataError for a suffix we can't read, or a file whose form is broken.
    """
    reader = READERS.get(path.suffix.lower())
    if path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        raise DataError(f"{path} is a spreadsheet: save it as CSV (UTF-8) first")
    if reader is not None and path.suffix.lower() != ".parquet":
        with path.open("rb") as file:
            if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise DataError(f"{path} is UTF-16: save it as UTF-8 first")
    if reader is None:
        raise DataError(
            f"{path}: can't read {path.suffix or 'a file without suffix'}; "
            f"give one of {', '.join(READERS)}"
        )
    return reader(path)


def find_splits(path: Path) -> dict[str, Path]:
    """The files of a data folder by split: train, and dev and test where there are any."""
    found: dict[str, Path] = {}
    for split, names in SPLITS.items():
        for name in names:
            files = [path / f"{name}{suffix}" for suffix in READERS]
            present = [file for file in files if file.is_file()]
            if len(present) > 1:
                raise DataError(
                    f"{path} has several {split} files: {', '.join(file.name for file in present)}"
                )
            if present and split not in found:
                found[split] = present[0]
    if "train" not in found:
        listing = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise DataError(
            f"{path} has no train file (train.csv, train.jsonl, ...); it holds {listing}"
        )
    return found


def hub_rows(name: str, split: str) -> tuple[str, Iterator[Row]]:
    """A fingerprint and the rows of a split of a hub data set 'name' or 'name:config'."""
    import datasets

    path, _, config = name.partition(":")
    data = datasets.load_dataset(path, config or None, split=split, streaming=False)
    return data._fingerprint, _named(data)


def _named(data: Any) -> Iterator[Row]:
    """The rows of a data set, with class ids turned into their names."""
    import datasets

    classes = {
        column: feature
        for column, feature in data.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    for number, row in enumerate(data, 1):
        values = dict(row)
        for column, feature in classes.items():
            value = values[column]
            values[column] = None if value is None or value < 0 else feature.int2str(value)
        yield number, values
