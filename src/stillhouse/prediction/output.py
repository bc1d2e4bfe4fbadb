"""Answered rows as lines of JSONL or CSV, written as they come."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

from stillhouse.core.errors import UsageError, unknown
from stillhouse.core.rundir import atomic
from stillhouse.prediction.rows import STDIN

Format = Literal["jsonl", "csv"]
FORMATS: tuple[Format, ...] = ("jsonl", "csv")
OWN = ("answer", "answer_start", "probability", "probabilities", "error")


def format_of(asked: str | None, out: str | None) -> Format:
    """As asked, else as the file's name says. Raises UsageError."""
    if asked is not None:
        if asked not in FORMATS:
            raise UsageError(unknown("format", asked, FORMATS))
        return asked  # pyright: ignore[reportReturnType]
    suffix = Path(out or "").suffix.lower().lstrip(".")
    if out not in (None, STDIN) and suffix not in (*FORMATS, "json", "ndjson"):
        raise UsageError(f"{out}: name it .jsonl or .csv, or say which with --format")
    return "csv" if suffix == "csv" else "jsonl"


def check_out(out: str | None, data: Any) -> None:
    """Raises UsageError for a place that no answers can go to."""
    if out in (None, STDIN):
        return
    path = Path(out or "")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no file that can be replaced: give another --out")
    if not isinstance(data, str | Path) or str(data) == STDIN or not path.exists():
        return
    source = Path(data).expanduser()
    if source.exists() and path.samefile(source):
        raise UsageError(f"{path} holds the rows themselves: give another --out")


@contextlib.contextmanager
def opened(out: str | None) -> Iterator[BinaryIO]:
    """Standard output; or a file that is there once all is written, and not before."""
    if out in (None, STDIN):
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with atomic(Path(out or "")) as temporary, temporary.open("wb") as file:
        yield file


def kept_columns(columns: Mapping[str, Any]) -> dict[str, Any]:
    """A row's own columns; those with a name of ours begin with input_."""
    return {f"input_{k}" if k in OWN else str(k): v for k, v in columns.items()}


class Writer:
    """Writes rows of one format. CSV's columns are those of the first row. `left`: names of
    columns that later rows have and the CSV hasn't."""

    def __init__(self, file: BinaryIO, form: Format, own: Sequence[str]) -> None:
        self._file, self._form = file, form
        self._own = [*own, "error"]
        self._names: list[str] | None = None
        self.left: set[str] = set()

    def add(self, row: Mapping[str, Any]) -> None:
        if self._form == "jsonl":
            text = json.dumps(json_value(row), ensure_ascii=False, default=str)
            self._put(text + "\n")
            return
        if self._names is None:
            self._names = [*(k for k in row if k not in self._own), *self._own]
            self._put(_line(self._names))
        self.left |= set(row) - set(self._names)
        self._put(_line([_cell(row.get(name)) for name in self._names]))

    def _put(self, text: str) -> None:
        self._file.write(text.encode("utf-8", "replace"))


def _line(cells: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict | list):
        return json.dumps(json_value(value), ensure_ascii=False, default=str)
    return str(json_value(value) if isinstance(value, bytes) else value)


def json_value(value: Any) -> Any:
    """A value that JSON has: NaN and infinities are null, bytes (Parquet's binary) are text."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): json_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(each) for each in value]
    return value
