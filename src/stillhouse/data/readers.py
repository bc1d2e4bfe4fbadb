"""Rows of a file, one at a time: CSV, TSV, JSONL, Parquet, plain text, or a hub data set."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.core.errors import DataError
from stillhouse.data.delimited import comma, tsv
from stillhouse.data.json_rows import json_rows

Row = tuple[int, dict[str, Any]]  # line number (1-based; the row number where there are no lines)
SPLITS = {
    "train": ("train", "training"),
    "dev": ("dev", "validation", "valid", "val", "eval"),
    "test": ("test",),
}


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if len(set(names)) != len(names):
            raise DataError(f"{path} has two columns of the same name: {', '.join(names)}")
        for batch in file.iter_batches(batch_size=8192):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, OSError) as error:
        said = str(error).splitlines()[0]
        after = f" after row {number}" if number else ""
        raise DataError(f"{path} is not Parquet that can be read{after}: {said}") from None


def _text(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for line, text in enumerate(file, 1):
            yield line, {"text": text.rstrip("\n")}


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": comma,
    ".tsv": tsv,
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": json_rows,
    ".parquet": _parquet,
    ".txt": _text,
}


@dataclass(frozen=True)
class FileRows:
    """The rows of a file; it is read anew each time that they are gone through."""

    path: Path
    reader: Callable[[Path], Iterator[Row]]

    def __iter__(self) -> Iterator[Row]:
        return self.reader(self.path)


def read(path: Path) -> Iterable[Row]:
    """(line, columns) of every row of `path`. Bytes that are not UTF-8 come as lone surrogates.

    Raises DataError for a suffix we can't read, or a file whose form is broken.
    """
    suffix = path.suffix.lower()
    reader = READERS.get(suffix)
    if suffix in (".xlsx", ".xls", ".ods"):
        raise DataError(f"{path} is a spreadsheet: save it as CSV (UTF-8) first")
    if reader is None:
        raise DataError(
            f"{path}: can't read {path.suffix or 'a file without suffix'}; "
            f"give one of {', '.join(READERS)}"
        )
    if suffix != ".parquet":
        _check_encoding(path)
    return FileRows(path, reader)


def _check_encoding(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(4096)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path} is UTF-16: save it as UTF-8 first")
    if b"\0" in start:
        raise DataError(f"{path} holds zero bytes, as UTF-16 or UTF-32 has: save it as UTF-8 first")


def find_splits(path: Path) -> dict[str, Path]:
    """The files of a data folder by split: train, and dev and test where there are any."""
    found: dict[str, Path] = {}
    for split, names in SPLITS.items():
        files = [path / f"{name}{suffix}" for name in names for suffix in READERS]
        present = [file for file in files if file.is_file()]
        if len(present) > 1:
            listed = ", ".join(file.name for file in present)
            raise DataError(f"{path} has several {split} files ({listed}): keep one of them")
        if present:
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
    return data._fingerprint, named_rows(data)


def named_rows(data: Any) -> Iterator[Row]:
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
