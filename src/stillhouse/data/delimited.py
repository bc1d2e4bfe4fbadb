"""Rows of CSV and TSV files. CSV is read strictly: a quote that is out of place is refused with its
line, as what follows would be taken for one text."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from stillhouse.core.errors import DataError

BROKEN = "\x00broken"  # in a row that can't be used: what is wrong with it
QUOTED_TSV = "broken quoted"
OTHER_DELIMITERS = ";\t|"
FEW_VALUES, SHORT_VALUE = 1000, 80  # a column of no more different short values is like a label
LINES_WITHOUT_LABELS = 4


def tsv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """A quote there is a letter like any other, and a line is a row."""
    with _opened(path) as file:
        header = next(file, None)
        if header is None:
            return
        table = _Table(path, header.rstrip("\r\n").split("\t"))
        for line, text in enumerate(file, 2):
            fields = text.rstrip("\r\n").split("\t")
            if text.strip("\r\n"):
                kind = QUOTED_TSV if '"' in text else "broken"
                yield line, table.row(fields, kind=kind)


def comma(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Columns are parted by commas; by ; or tab or | where the header has one and no comma, or by
    what the spreadsheet's first line `sep=` says."""
    with _opened(path) as file:
        start = [file.readline(), file.readline(), file.readline()]
        said = re.fullmatch(r"sep=(.)[\r\n]*", start[0])
        line = 2 if said else 1  # of the header
        header, first = start[line - 1], start[line]
        delimiter = said.group(1) if said else _delimiter(header)
        lines = _Lines(start[line - 1 :], file)
        spaced = _is_spaced(header, first, delimiter)
        records = _records(path, lines, delimiter, line, spaced=spaced)
        names = next(records, None)
        if names is None:
            return
        table = _Table(path, names[1])
        swallowed = _Swallowed(path, delimiter, len(table.names))
        _check_single_quotes(path, names[1])
        for number, (at, fields) in enumerate(records):
            if not number:
                _check_single_quotes(path, fields)
            swallowed.look(at, fields)
            yield at, table.row(fields)
        swallowed.check()


def _opened(path: Path) -> TextIO:
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


class _Table:
    """Names of the columns. Columns without a name are not read, whether empty or not."""

    def __init__(self, path: Path, header: list[str]) -> None:
        self.names = [name.strip().strip("\ufeff").strip() for name in header]
        named = [name for name in self.names if name]
        if len(set(named)) != len(named):
            raise DataError(f"{path} has two columns of the same name: {', '.join(named)}")
        self._most = len(self.names)
        self._least = max((i for i, name in enumerate(self.names, 1) if name), default=0)
        self._blank: dict[str, Any] = dict.fromkeys(named)

    def row(self, fields: list[str], *, kind: str = "broken") -> dict[str, Any]:
        """A row has a field for each column that has a name; more are left out if empty."""
        if fields[0][:1] == "\ufeff":  # of a file that was put behind another
            fields[0] = fields[0][1:]
        row = self._blank | {
            name: field for name, field in zip(self.names, fields, strict=False) if name
        }
        if len(fields) < self._least or any(field.strip() for field in fields[self._most :]):
            row[BROKEN] = kind
        elif [field.strip() for field in fields] == self.names:
            row[BROKEN] = "repeated header"
        return row


def _delimiter(header: str) -> str:
    bare = re.sub(r'"[^"]*"', "", header)
    most = max(OTHER_DELIMITERS, key=bare.count)
    return most if "," not in bare and most in bare else ","


def _is_spaced(header: str, first: str, delimiter: str) -> bool:
    """Whether a quoted field may stand behind a space, as in `text, "label"`."""
    pattern = re.compile(re.escape(delimiter) + ' +"')
    if f"{delimiter} " in re.sub(r'"[^"]*"', "", header):
        return True
    if not pattern.search(first):
        return False
    try:
        (fields,) = csv.reader([first], delimiter=delimiter, skipinitialspace=True, strict=True)
        (names,) = csv.reader([header], delimiter=delimiter)
    except (csv.Error, ValueError):
        return False
    return len(fields) == len(names)


def _check_single_quotes(path: Path, fields: list[str]) -> None:
    quoted = [len(field) > 2 and field[0] == field[-1] == "'" for field in fields]
    if len(quoted) > 1 and all(quoted):
        raise DataError(f"{path} has its fields in single quotes: save it with double quotes")


class _Lines:
    """The lines of a file; `held` are those of the row that is being read."""

    def __init__(self, start: list[str], file: TextIO) -> None:
        self._start, self._file = [line for line in reversed(start) if line], file
        self.held: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._start.pop() if self._start else next(self._file)
        self.held.append(line)
        return line


def _records(
    path: Path, lines: _Lines, delimiter: str, first: int, *, spaced: bool
) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of every row that is not empty, the header too. Raises DataError."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=spaced, strict=True)
    while True:
        line = first + reader.line_num
        lines.held.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(_misquoted(path, line, lines.held, delimiter, error)) from None
        if fields:
            yield line, fields


def _misquoted(path: Path, line: int, held: list[str], delimiter: str, error: csv.Error) -> str:
    """What is wrong with the quotes of a row that begins in `line`."""
    opened, closed = _last_quoted(held, delimiter)
    if opened is None:
        return f"{path} line {line}: {error}"
    first = line + _lines_before(held, opened)
    rule = 'a quote inside a text is doubled ("")'
    if closed is None:
        return f"{path} line {first}: a quote opens here and is never closed: {rule}"
    last, text = line + _lines_before(held, closed), "".join(held)
    if text[closed - 1] == "\\":
        rule += ", or save the file as JSONL"
        return f'{path} line {last} writes a quote inside a text as \\": {rule}'
    ends = "in the same line" if first == last else f"in line {last}"
    said = f"{path} line {first}: a quote opens here and closes {ends} before its field ends"
    return f"{said}: {rule}"


def _last_quoted(held: list[str], delimiter: str) -> tuple[int | None, int | None]:
    """Where in the row's text its last quoted field opens, and where it closes, if it does."""
    text, at, opened, closed = "".join(held), 0, None, None
    bounds = re.compile(f"[{re.escape(delimiter)}\r\n]")
    while at < len(text):
        start = at
        while text[start : start + 1] == " ":
            start += 1
        if text[start : start + 1] == '"':
            opened, closed = start, _closing(text, start + 1)
            if closed is None:
                return opened, None
            at = closed + 1
            if at < len(text) and not bounds.match(text, at):
                return opened, closed
        found = bounds.search(text, at)
        at = found.end() if found else len(text)
    return opened, closed


def _closing(text: str, at: int) -> int | None:
    """Where the quote is that is not doubled."""
    while (at := text.find('"', at)) >= 0:
        if text[at + 1 : at + 2] != '"':
            return at
        at += 2
    return None


def _lines_before(held: list[str], position: int) -> int:
    for number, line in enumerate(held):
        position -= len(line)
        if position < 0:
            return number
    return len(held) - 1


@dataclass(frozen=True)
class _Suspect:
    """A text of several lines that could each be a row, and the cells they would have by column."""

    first: int
    last: int
    cells: dict[int, set[str]]


class _Swallowed:
    """Texts of several lines that are rather rows behind a quote that was left open: every line
    would be a whole row, and in some column they would hold only values that other rows have there
    too. Where no column is like a label, it is enough that many lines would each be a row."""

    def __init__(self, path: Path, delimiter: str, width: int) -> None:
        self._path, self._delimiter, self._width = path, delimiter, width
        self._rows = 0
        self._values: list[set[str]] = [set() for _ in range(width)]
        self._long = [False] * width
        self._suspects: list[_Suspect] = []

    def look(self, line: int, fields: list[str]) -> None:
        if len(fields) != self._width:
            return
        if not any("\n" in field or "\r" in field for field in fields):
            self._remember(fields)
            return
        for column, field in enumerate(fields):
            parts = re.split(r"\r\n|\r|\n", field)
            cells = self._cells(fields, column, parts) if len(parts) > 1 else None
            if cells is not None:
                self._suspects.append(_Suspect(line, line + len(parts) - 1, cells))
            line += len(parts) - 1

    def _cells(
        self, fields: list[str], column: int, parts: list[str]
    ) -> dict[int, set[str]] | None:
        """What the lines of one field would hold in the other columns if each were a row; None
        where one of them would not be a whole row."""
        rows = [part.split(self._delimiter) for part in parts]
        rows[0] = [*fields[:column], *rows[0]]
        rows[-1] = [*rows[-1], *fields[column + 1 :]]
        if any(len(row) != self._width for row in rows if row != [""]):
            return None
        found: dict[int, set[str]] = {}
        for other in range(self._width):
            if other != column:
                mine = rows[:-1] if other > column else rows[1:]  # not what it has either way
                found[other] = {row[other].strip() for row in mine if row != [""]}
        return found

    def _remember(self, fields: list[str]) -> None:
        self._rows += 1
        for column, value in enumerate(fields):
            if len(value) > SHORT_VALUE:
                self._long[column] = True
            elif len(self._values[column]) <= FEW_VALUES:
                self._values[column].add(value.strip())

    def _like_a_label(self, column: int) -> bool:
        few = len(self._values[column]) <= min(FEW_VALUES, self._rows / 2)
        return few and not self._long[column]

    def check(self) -> None:
        """Raises DataError for the first text of several lines that is rather rows."""
        for each in self._suspects:
            known = [column for column in each.cells if self._like_a_label(column)]
            met = any(each.cells[column] <= self._values[column] for column in known)
            lines = each.last - each.first + 1
            if met or (not known and each.cells and lines >= LINES_WITHOUT_LABELS):
                raise DataError(
                    f"{self._path} line {each.first}: a quote opens here and closes in line "
                    f"{each.last}, and each of these lines could be a row: double the quote "
                    "if it is part of a text, or save the file as JSONL if this is one text"
                )
