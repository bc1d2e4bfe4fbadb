"""Data from memory: a DataFrame, a Dataset, a list of rows. They are kept as a file of the store,
named after what they are and their content, so that they are read, found again and named in
config.yaml like any other file, and a run can be repeated from there."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stillhouse.core.config import DataConfig
from stillhouse.core.errors import DataError
from stillhouse.core.private import make
from stillhouse.core.rundir import atomic, writes
from stillhouse.core.settings import described, path_of
from stillhouse.data.cells import cell_text, plain
from stillhouse.data.places import MEMORY
from stillhouse.data.readers import SPLITS, named_rows

TAKEN = "a path, a hub name, a DataFrame, a datasets.Dataset or a list of dicts"
FIELDS = ("path", "unlabelled", "dev")  # of the section data, that rows may stand for


def data_section(data: object, store: Path) -> dict[str, Any]:
    """The section `data` of what a caller gave: its settings, a path, or rows, which are kept under
    `store`. Raises DataError for what is none of these."""
    if isinstance(data, DataConfig):
        return data.model_dump()
    if _is_rows(data) or _is_splits(data):
        return {"path": kept(data, store)}
    if isinstance(data, Mapping):
        held = {
            key: kept(value, store, text=str(data.get("text") or "text"))
            if key in FIELDS and _is_any_rows(value)
            else value
            for key, value in data.items()
        }
        for key in FIELDS:
            if held.get(key) is not None:
                held[key] = path_of(held[key], f"data's {key}", TAKEN)
        return held
    return {"path": path_of(data, "data", TAKEN)}


def kept(data: Any, store: Path, *, text: str = "text") -> str:
    """The path of a JSON Lines file with these rows, or of a folder with one a split. `text`: the
    column of rows that are nothing but a text."""
    folder = store.resolve() / MEMORY
    if not _is_splits(data):
        return str(_write(memory_rows(data, text), type(data).__name__, folder))
    files = {split: _write(memory_rows(rows, text), split, folder) for split, rows in data.items()}
    digest = hashlib.blake2b(repr(sorted(map(str, files.values()))).encode(), digest_size=8)
    place = folder / f"{type(data).__name__}-{digest.hexdigest()}"
    with writes(place):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        for split, file in files.items():
            if not (named := place / f"{split}.jsonl").exists():
                with atomic(named, private=True) as temporary:
                    shutil.copyfile(file, temporary)
    return str(place)


def _is_any_rows(value: object) -> bool:
    return _is_rows(value) or _is_splits(value)


def _is_rows(data: object) -> bool:
    library = type(data).__module__.partition(".")[0]
    return isinstance(data, list | tuple) or (
        library in ("pandas", "polars", "pyarrow", "datasets") and not isinstance(data, Mapping)
    )


def _is_splits(data: object) -> bool:
    """Whether it is a mapping of splits (train, test, ...) to rows, as datasets.DatasetDict is."""
    known = {name for names in SPLITS.values() for name in names}
    return (
        isinstance(data, Mapping)
        and bool(data)
        and all(key in known and _is_rows(value) for key, value in data.items())
    )


def memory_rows(data: Any, text: str) -> Iterator[dict[str, Any]]:
    """The rows of anything that `_is_rows`. Raises DataError for what has none."""
    library, kind = type(data).__module__.partition(".")[0], type(data).__name__
    if library == "pandas" and kind == "DataFrame":
        names = [_column(name) for name in data.columns]
        if twice := {name for name in names if names.count(name) > 1}:
            raise DataError(f"the DataFrame has two columns {sorted(twice)[0]!r}: rename one")
        for values in data.itertuples(index=False, name=None):
            yield dict(zip(names, values, strict=True))
    elif library == "polars" and kind == "DataFrame":
        yield from data.iter_rows(named=True)
    elif library == "pyarrow" and kind in ("Table", "RecordBatch"):
        yield from data.to_pylist()
    elif library == "datasets":
        yield from (row for _, row in named_rows(data)) if data.features else data
    elif kind in ("Series", "list", "tuple"):
        yield from _listed(data, text)
    else:
        raise DataError(f"data is {described(data)}: give {TAKEN}")


def _listed(data: Iterable[Any], text: str) -> Iterator[dict[str, Any]]:
    """Dicts as they are, texts as rows that are nothing else."""
    for number, row in enumerate(data, 1):
        if isinstance(row, str):
            yield {text: row}
        elif isinstance(row, Mapping):
            yield {_column(name): value for name, value in row.items()}
        elif dataclasses.is_dataclass(row) and not isinstance(row, type):
            yield dataclasses.asdict(row)
        else:
            raise DataError(
                f"row {number} of data is {described(row)}: a row is a dict such as "
                "{'text': ..., 'label': ...}"
            )


def _column(name: object) -> str:
    if not isinstance(name, str):
        raise DataError(f"data has a column {name!r}: name its columns, such as text and label")
    return name


def _write(rows: Iterator[dict[str, Any]], kind: str, folder: Path) -> Path:
    """The file of these rows, written unless it is there. Raises DataError for a value that is no
    text, number or list of these."""
    digest, count = hashlib.blake2b(digest_size=8), 0
    with writes(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as temporary:
            part = Path(temporary) / "rows"
            make(part)  # rows may be anybody's texts
            with part.open("w", encoding="ascii") as file:
                for count, row in enumerate(rows, 1):
                    plain_row = {name: _plain(value, name, count) for name, value in row.items()}
                    line = json.dumps(plain_row) + "\n"
                    digest.update(line.encode("ascii"))
                    file.write(line)
                file.flush()
                os.fsync(file.fileno())
            if not count:
                raise DataError(f"data is an empty {kind}: it has no row")
            path = folder / f"{kind}-{digest.hexdigest()}.jsonl"
            part.replace(path)  # whole; of several writers' any, as all wrote the same
    return path


def _plain(value: Any, column: str, row: int) -> Any:
    """A value as JSON has it, and as a cell of a file is read: see cells. What is missing is
    None."""
    value = plain(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(inner, column, row) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, column, row) for inner in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isinf(value):
        raise DataError(f"row {row} of data: {column} is {value}, which is no value")
    text = cell_text(value)
    if text is None or isinstance(value, datetime.date | datetime.time | decimal.Decimal):
        return text
    if isinstance(value, float):
        return value
    raise DataError(f"row {row} of data: {column} is {described(value)}: make it text or a number")
