"""The rows that are asked about, one at a time, from a file, standard input or memory.

A row that can't be asked about keeps its place, with why.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from stillhouse.core.errors import DataError, UsageError
from stillhouse.core.inference import Inference
from stillhouse.data.cells import is_utf8, text_of, value_at
from stillhouse.data.columns import LIKE_TEXTS, Columns
from stillhouse.data.delimited import BROKEN
from stillhouse.data.memory import memory_rows
from stillhouse.data.readers import Row, read
from stillhouse.data.turns import conversation_in
from stillhouse.data.usable import Header

STDIN = "-"
NAME = re.compile(r"[\w.-]+")  # of a column
ARRAY = re.compile(r"\[\s*(\{|$)")  # of objects, or of what the next line begins
EMPTY, NO_PAIR, NOT_UTF8, NOT_JSON = (
    "it has no text",
    "it has no second text",
    "it is not UTF-8",
    "it is not a JSON object",
)


@dataclass(frozen=True)
class AskedRow:
    """A row with what is asked of it, or the error that keeps it from being asked."""

    line: int
    columns: Mapping[str, Any]
    text: str = ""
    pair: str | None = None
    error: str | None = None


def source_of(data: Any, *, lines: BinaryIO | None = None) -> tuple[Iterable[Row], str, bool]:
    """The rows of a path, of standard input ("-") or of a list; what to call them; whether a
    row that is but a text may hold two, with a tab between. Raises DataError, UsageError."""
    if isinstance(data, str | Path) and str(data) == STDIN:
        return *_piped(lines or sys.stdin.buffer), True
    if isinstance(data, str | Path):
        path = Path(data).expanduser()
        if path.is_dir():
            raise DataError(f"{path} is a folder: name the file whose rows are to be answered")
        if not path.exists():
            raise DataError(f"there is no file {path}")
        return read(path), path.name, path.suffix.lower() == ".txt"
    if hasattr(data, "columns") or hasattr(data, "column_names"):  # a table of some library
        return enumerate(memory_rows(data, "text"), 1), "the rows", True
    if not isinstance(data, Iterable) or isinstance(data, Mapping | bytes):
        raise UsageError("data is a file, or a list of texts, of pairs, or of rows as dicts")
    return enumerate(map(_row, data), 1), "the rows", True


def _row(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple | list) and len(value) == 2 and not isinstance(value[0], Mapping):
        return {"text": value[0], "pair": value[1]}
    return {"text": value}


def _piped(lines: Iterable[bytes]) -> tuple[Iterator[Row], str]:
    """A text a line; a JSON object a line where the first one is that, or an array of them."""
    return _told_apart(lines), "standard input"


def _told_apart(lines: Iterable[bytes]) -> Iterator[Row]:
    objects: bool | None = None
    numbered = enumerate(lines, 1)
    for number, raw in numbered:
        line = _decoded(raw, number)
        if objects is None and line.strip():
            objects = line.lstrip().startswith("{")
            _check_text(raw)
            _check_no_header(line)
            if ARRAY.match(line.strip()):
                yield from _array([(number, raw), *numbered])
                return
        if not objects:
            yield number, {"text": line}
        elif line.strip():
            yield number, _object(line)


def _decoded(raw: bytes, number: int) -> str:
    codec = "utf-8-sig" if number == 1 else "utf-8"
    return raw.decode(codec, "surrogateescape").rstrip("\r\n")


def _array(numbered: list[tuple[int, bytes]]) -> Iterator[Row]:
    """The objects of an array of nothing else; of any other lines each as a text."""
    texts = [(number, _decoded(raw, number)) for number, raw in numbered]
    try:
        found = json.loads("\n".join(text for _, text in texts))
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, list) and all(isinstance(each, dict) for each in found):
        yield from enumerate(found, 1)
    else:
        yield from ((number, {"text": text}) for number, text in texts)


def _check_text(raw: bytes) -> None:
    """Raises DataError for the beginning of a file that is no text."""
    if raw.startswith(b"PAR1") or b"\0" in raw:
        what = "a Parquet file" if raw.startswith(b"PAR1") else "no UTF-8 text"
        raise DataError(f"standard input is {what}: name the file instead of piping it")


def _check_no_header(line: str) -> None:
    """Raises DataError for names of columns, some of them empty perhaps, which would be answered as
    a text."""
    cells = [name.strip('"').lower() for name in re.split(r"[,;\t|]", line)]
    names = [*filter(None, cells)]
    if len(cells) > 1 and {*names} & {*LIKE_TEXTS} and all(map(NAME.fullmatch, names)):
        raise DataError(
            f"standard input begins with the names of columns ({line.strip()}): name the file "
            "instead of piping it, or pipe a text or a JSON object a line"
        )


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {BROKEN: NOT_JSON}


def asked_rows(
    source: Iterable[Row], where: str, columns: Columns, facts: Inference, *, plain: bool
) -> Iterator[AskedRow]:
    """Every row of `source`, in its order. Raises DataError where the columns that the model needs
    are not there."""
    header = Header(source, where, columns, labelled=False)
    found: Columns | None = None
    for line, row in header.rows:
        held = {name: value for name, value in row.items() if name != BROKEN}
        if found is None:
            found = _columns(header, columns, facts, plain=plain)
        text, pair, error = _texts(row, found, facts)
        yield AskedRow(line, held, text or "", pair, error)


def _columns(header: Header, asked: Columns, facts: Inference, *, plain: bool) -> Columns:
    found = header.found
    if asked.pair is None and facts.pair is False:
        return replace(found, pair=None)  # the model has never seen a second text
    tabbed = plain and header.names == ["text"]
    if _needs_pair(facts) and found.pair is None and not tabbed:
        what = "passages" if facts.task == "span" else "second texts"
        raise DataError(
            f"the model answers on {what}, and {header.where} has none (its columns: "
            f"{', '.join(header.names)}): say which column holds them with --pair-column"
        )
    return found


def _needs_pair(facts: Inference) -> bool:
    return facts.task == "span" or bool(facts.pair)


def _texts(
    row: dict[str, Any], found: Columns, facts: Inference
) -> tuple[str | None, str | None, str | None]:
    """What is asked of a row: text, second text; and the error that keeps it from being asked."""
    if BROKEN in row:
        return None, None, row[BROKEN] if row[BROKEN] == NOT_JSON else f"it is {row[BROKEN]}"
    needs, pair = _needs_pair(facts), None
    try:
        text = _said(row, found)
        if needs and found.pair is None and text is not None and "\t" in text:
            first, _, second = text.partition("\t")
            text, pair = first.strip() or None, second.strip() or None
        elif found.pair is not None:
            pair = text_of(value_at(row, found.pair), found.pair, "--pair-column")
    except DataError as error:
        return None, None, str(error)
    if not is_utf8(text, pair):
        return None, None, NOT_UTF8
    if text is None:
        return None, None, EMPTY
    if pair is None and (needs or found.pair is not None):
        return None, None, NO_PAIR
    return text, pair, None


def _said(row: dict[str, Any], found: Columns) -> str | None:
    """A row's text; a conversation as it is stored. Raises DataError."""
    assert found.text is not None, "columns without a text are refused"
    if found.texts:
        said = conversation_in(row, found.text, None, lambda note: None)
        if said is not None:
            return said[0]
    return text_of(value_at(row, found.text), found.text, "--text-column")
