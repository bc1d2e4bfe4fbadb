"""The rows of a file that can be used, as texts and labels; the others counted by what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

from stillhouse.core.errors import DataError
from stillhouse.data.cells import is_utf8, label_of, text_of, value_at
from stillhouse.data.columns import Columns
from stillhouse.data.delimited import BROKEN, QUOTED_TSV
from stillhouse.data.readers import Row
from stillhouse.data.turns import Note, conversation_in

PEEKED = 500  # rows from which the columns of a file without a header are known
SHOWN_LINES = 5
NOT_UTF8 = "non-UTF-8"
HINTS = {
    NOT_UTF8: ": save the file as UTF-8",
    QUOTED_TSV: ": in a .tsv a quote is a letter, so save texts of several lines as CSV or JSONL",
}


class Problems:
    """Rows that can't be used, counted by kind, with their first line numbers."""

    def __init__(self) -> None:
        self.lines: dict[str, list[int]] = {}
        self.counts: dict[str, int] = {}
        self.told: set[str] = set()  # of conversations: what is not read

    def add(self, kind: str, line: int) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        lines = self.lines.setdefault(kind, [])
        if len(lines) < SHOWN_LINES:
            lines.append(line)

    def notes(self, unit: str) -> list[str]:
        """A row stands in a `unit` of its file."""

        def one(kind: str, count: int) -> str:
            lines = self.lines[kind]
            more = ", ..." if count > len(lines) else ""
            listed = ", ".join(map(str, lines)) + more
            row = "row" if count == 1 else "rows"
            hint = HINTS.get(kind, "")
            return f"{count} {kind} {row} left out ({unit} {listed}){hint}"

        found = [one(kind, count) for kind, count in self.counts.items()]
        return found + sorted(self.told)


class Header:
    """The columns of a file, found in its first rows; all its rows are looked at only where the
    first ones lack what is needed."""

    def __init__(
        self,
        source: Iterable[Row],
        where: str,
        asked: Columns,
        *,
        labelled: bool,
        unit: str = "line",
    ) -> None:
        self.where, self.labelled, self._asked, self.unit = where, labelled, asked, unit
        rows = iter(source)
        first = list(islice(rows, PEEKED))
        self.rows: Iterator[Row] = chain(first, rows)
        self._names: dict[str, Any] = {BROKEN: None}
        for _, row in first:
            self._names |= row
        if not first:
            return
        try:
            self.found = self._find()
        except DataError:
            if rows is source:  # which can't be read again
                raise
            for _, row in source:
                self._names |= row
            self.found = self._find()

    @property
    def names(self) -> list[str]:
        return [name for name in self._names if name != BROKEN]

    @property
    def guessed(self) -> str | None:
        return self.found.guessed(self._asked)

    @property
    def notes(self) -> list[str]:
        """What looks like a text and is not read."""
        unread = ", ".join(self.found.unread(self.names, self._asked))
        said = f"{unread} not read (--text-column, --pair-column say what is)"
        return [said] if unread else []

    def _find(self) -> Columns:
        return self._asked.find(self.names, self.where, labelled=self.labelled)

    def check(self, line: int, row: dict[str, Any]) -> None:
        """Raises DataError for a row with other columns, where that makes a difference."""
        hint = "say which columns to read with --text-column, --pair-column and --label-column"
        pair = self.found.pair
        if pair is not None and self._asked.pair is None and pair not in row:
            raise DataError(
                f"{self.where} {self.unit} {line} has no {pair}, which other rows have: {hint}"
            )
        if row.keys() <= self._names.keys():
            return
        new = ", ".join(name for name in row if name not in self._names)
        self._names |= row
        if self._find() != self.found:
            raise DataError(
                f"{self.where} {self.unit} {line} has {new}, which the rows before it lack: {hint}"
            )


Usable = tuple[int, str, str | None, str | None, str | None]


def usable(header: Header, problems: Problems) -> Iterator[Usable]:
    """(line, text, pair, label, group) of the usable rows; the others go to `problems`."""
    for line, row in header.rows:
        if BROKEN in row:
            problems.add(row[BROKEN], line)
            continue
        header.check(line, row)
        try:
            text, pair, label, group = _fields(row, header.found, problems.told.add)
        except DataError as error:
            raise DataError(f"{header.where} {header.unit} {line}: {error}") from None
        if not is_utf8(text, pair, label, group):
            problems.add(NOT_UTF8, line)
        elif text is None or (header.found.pair and pair is None):
            problems.add("empty", line)
        else:
            yield line, text, pair, label if header.labelled else None, group


def _fields(
    row: dict[str, Any], found: Columns, note: Note
) -> tuple[str | None, str | None, str | None, str | None]:
    """Text, pair, label and group of a row. Raises DataError."""
    text = value_at(row, found.text)
    group = text_of(value_at(row, found.group), found.group, "data.group")
    if found.texts and found.text is not None:
        said = conversation_in(row, found.text, found.label, note)
        if said is not None:
            return said[0], None, said[1], group
    answer = value_at(row, found.label)
    if found.texts:
        label = text_of(answer, found.label, "--label-column")
    else:
        label = label_of(answer, found.label)
    return (
        text_of(text, found.text, "--text-column"),
        text_of(value_at(row, found.pair), found.pair, "--pair-column"),
        label,
        group,
    )
