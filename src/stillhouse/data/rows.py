"""Rows on disk: read once, checked, memory-mapped afterwards.

Each row has a content key (a hash of its text and pair; of its text and label where that is a
text): duplicates and cached answers go by it, never by position. Its folded key is the same for
texts that differ in case, white space, Unicode form or invisible characters only, and for a pair's
texts in either order: splits and leaks go by that one.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.core.errors import DataError
from stillhouse.core.progress import Advance, Progress, Silent
from stillhouse.core.rundir import atomic_folder
from stillhouse.core.types import Example
from stillhouse.core.units import counted
from stillhouse.data.cells import fold_label
from stillhouse.data.chat import folded_text
from stillhouse.data.columns import Columns
from stillhouse.data.readers import Row
from stillhouse.data.usable import HINTS, NOT_UTF8, SHOWN_LINES, Header, Problems, usable

FIELDS = ("text", "pair", "label", "group")
SCHEMA = pa.schema([(name, pa.string()) for name in FIELDS])
CHUNK = 8192
FORMAT = 12  # of what is stored: rows of another one are read anew


def content_key(text: str, pair: str | None) -> bytes:
    """16 bytes that stand for a row's content."""
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    if pair is not None:
        digest.update(b"\x1f" + pair.encode())
    return digest.digest()


def folded_key(text: str, pair: str | None) -> bytes:
    """The content key of the row's folded text; of a pair's two, in an order that is theirs."""
    return _folded_keys(text, pair)[0]


def _folded_keys(text: str, pair: str | None) -> tuple[bytes, bytes]:
    """The folded key of a row, and the one that tells a pair from the same pair turned round."""
    first = folded_text(text)
    if pair is None:
        return (key := content_key(first, None)), key
    second = folded_text(pair)
    return content_key(*sorted((first, second))), content_key(first, second)


class Rows:
    """A checked file of rows, memory-mapped. `kept` are the usable ones: first of each content;
    `lines`: where each row stands in the file, which is `where` now: the same rows may have been
    stored of another. unit: what it stands in there, a line or a row."""

    def __init__(self, folder: Path, where: str, *, unit: str = "line") -> None:
        self.where, self._unit = where, unit
        self.folder = folder
        source = pa.memory_map(str(folder / "rows.arrow"))
        self.table = pa.ipc.open_file(source).read_all()
        self.keys = np.load(folder / "keys.npy", mmap_mode="r")
        self.folded = np.load(folder / "folded.npy", mmap_mode="r")
        self.ordered = np.load(folder / "ordered.npy", mmap_mode="r")  # folded; a pair as it stands
        self.kept = np.load(folder / "kept.npy")
        self.lines = np.load(folder / "lines.npy", mmap_mode="r")
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        self.dropped: dict[str, int] = summary["dropped"]
        self.notes: list[str] = [f"{where}: {note}" for note in summary["notes"]]
        self.guessed: str | None = summary["guessed"]  # which columns were read that no one named
        self.fingerprint: str = folder.name

    def place(self, row: int) -> str:
        """File and line of a row, to be named."""
        return f"{self.where} {self._unit} {self.lines[row]}"

    @cached_property
    def labels(self) -> np.ndarray:
        """Label of each row as text, None where there is none (object array)."""
        return self._column("label")

    @cached_property
    def groups(self) -> np.ndarray:
        """Group of each row (its language, its task), None where it has none (object array)."""
        return self._column("group")

    @property
    def label_counts(self) -> Counter[str]:
        """How many of the kept rows have each label."""
        counts: Counter[str] = Counter(self.labels[self.kept].tolist())
        del counts[None]  # pyright: ignore[reportArgumentType]
        return counts

    def renamed(self, names: dict[str, str | None]) -> Rows:
        """The same rows with some labels by another name; None: they stand for no label."""
        encoded = self.table["label"].combine_chunks().dictionary_encode()
        values = [names.get(name, name) for name in encoded.dictionary.to_pylist()]
        labels = pc.take(pa.array(values, pa.string()), encoded.indices)
        other = copy.copy(self)
        other.__dict__.pop("labels", None)
        place = self.table.column_names.index("label")
        other.table = self.table.set_column(place, "label", labels)
        return other

    def _column(self, name: str) -> np.ndarray:
        encoded = self.table[name].combine_chunks().dictionary_encode()
        values = np.array([*encoded.dictionary.to_pylist(), None], dtype=object)
        return values[np.asarray(encoded.indices.fill_null(len(values) - 1))]

    def examples(self, indices: np.ndarray) -> Iterator[Example]:
        """The rows at `indices`, read in chunks."""
        for start in range(0, len(indices), CHUNK):
            part = self.table.take(pa.array(indices[start : start + CHUNK]))
            columns = (part[name].to_pylist() for name in FIELDS)
            for values in zip(*columns, strict=True):
                yield Example(*values)


def ingest(
    source: Iterable[Row],
    where: str,
    columns: Columns,
    folder: Path,
    *,
    labelled: bool,
    unit: str = "line",
    progress: Progress | None = None,
) -> Rows:
    """Reads, checks and stores `source`; a folder that is already there is used as it is. A row is
    named by `where` and its number, which is of a `unit`."""
    if not (folder / "summary.json").exists():
        with contextlib.ExitStack() as stack, atomic_folder(folder, "rows") as temporary:
            advance = _advancing(stack, progress or Silent(), where)
            header = Header(source, where, columns, labelled=labelled, unit=unit)
            _write(header, columns, temporary, progress=advance)
    return Rows(folder, where, unit=unit)


def _advancing(stack: contextlib.ExitStack, progress: Progress, where: str) -> Advance:
    """Counts rows in a stage that begins with the first full chunk: of few rows nothing is told."""
    begun: list[Advance] = []

    def advance(rows: int) -> None:
        if not begun and rows == CHUNK:
            stage = progress.stage(f"reading {Path(where).name}", 0, "rows")
            begun.append(stack.enter_context(stage))
        for count in begun:
            count(rows)

    return advance


def _write(header: Header, columns: Columns, folder: Path, *, progress: Advance) -> None:
    problems = Problems()
    keys, free, ordered, lines = bytearray(), bytearray(), bytearray(), []
    chunk: dict[str, list[str | None]] = {name: [] for name in SCHEMA.names}
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink:
        with pa.ipc.new_file(sink, SCHEMA) as writer:
            for line, text, pair, label, group in usable(header, problems):
                for name, value in zip(SCHEMA.names, (text, pair, label, group), strict=True):
                    chunk[name].append(value)
                keys += content_key(text, label if columns.texts else pair)
                either, as_given = _folded_keys(text, pair)
                free += either
                ordered += as_given
                lines.append(line)
                if len(chunk["text"]) == CHUNK:
                    writer.write_batch(pa.record_batch(chunk, schema=SCHEMA))
                    chunk = {name: [] for name in SCHEMA.names}
                    progress(CHUNK)
            if chunk["text"]:
                writer.write_batch(pa.record_batch(chunk, schema=SCHEMA))
                progress(len(chunk["text"]))
    if not lines:
        found = ", ".join(f"{n} {kind}" for kind, n in problems.counts.items()) or "it is empty"
        hint = HINTS[NOT_UTF8] if NOT_UTF8 in problems.counts else ""
        raise DataError(f"{header.where} has no usable row ({found}){hint}")
    keys_N2 = np.frombuffer(bytes(keys), dtype="<u8").reshape(-1, 2)
    np.save(folder / "keys.npy", keys_N2)
    for name, found in (("folded", free), ("ordered", ordered)):
        np.save(folder / f"{name}.npy", np.frombuffer(bytes(found), dtype="<u8").reshape(-1, 2))
    lines_N = np.asarray(lines, dtype=np.int64)
    np.save(folder / "lines.npy", lines_N)
    kept = _first_of_each(folder, keys_N2, lines_N, problems)
    np.save(folder / "kept.npy", kept)
    notes = [*problems.notes(header.unit), *header.notes]
    if not columns.texts:
        notes += _twins_apart(folder, kept, lines_N, header.unit)
    summary = {"dropped": problems.counts, "notes": notes, "guessed": header.guessed}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def _twins_apart(folder: Path, kept: np.ndarray, lines: np.ndarray, unit: str) -> list[str]:
    """A note of kept rows that differ from an earlier one in case, spacing, Unicode form or
    invisible characters only, and yet have another label: nothing says which of the two is right.
    """
    folded_N2 = np.load(folder / "ordered.npy")[kept]
    _, first, inverse = np.unique(folded_N2, axis=0, return_index=True, return_inverse=True)
    earlier = first[inverse.reshape(-1)]
    twins = np.flatnonzero(earlier != np.arange(len(kept)))
    if not len(twins):
        return []
    with pa.memory_map(str(folder / "rows.arrow")) as source:
        labels = pa.ipc.open_file(source).read_all()["label"]
        mine = labels.take(pa.array(kept[twins])).to_pylist()
        theirs = labels.take(pa.array(kept[earlier[twins]])).to_pylist()
    apart = [
        int(lines[kept[row]])
        for row, label, other in zip(twins, mine, theirs, strict=True)
        if label is not None and other is not None and fold_label(label) != fold_label(other)
    ]
    if not apart:
        return []
    more = ", ..." if len(apart) > SHOWN_LINES else ""
    return [
        f"{counted(len(apart), 'row')} kept whose text is an earlier "
        "one's but for case, spacing or Unicode form, and whose label is another "
        f"({unit} {', '.join(map(str, apart[:SHOWN_LINES]))}{more}): correct them"
    ]


def _first_of_each(
    folder: Path, keys_N2: np.ndarray, lines: np.ndarray, problems: Problems
) -> np.ndarray:
    """Positions of the first row of each content, or of the first with a label; the others are
    counted as duplicates, and as contradictions where their label is another."""
    _, first, inverse = np.unique(keys_N2, axis=0, return_index=True, return_inverse=True)
    representative = first[inverse.reshape(-1)]
    repeated = np.flatnonzero(representative != np.arange(len(keys_N2)))
    if len(repeated):
        with pa.memory_map(str(folder / "rows.arrow")) as source:
            labels = pa.ipc.open_file(source).read_all()["label"]
            same = labels.take(pa.array(repeated)).to_pylist()
            original = labels.take(pa.array(representative[repeated])).to_pylist()
        held = dict(zip(representative[repeated].tolist(), original, strict=True))
        kept = {row: row for row in held}
        for row, of, label in zip(repeated.tolist(), representative[repeated], same, strict=True):
            first_row, theirs = int(of), held[int(of)]
            if theirs is None and label is not None:
                problems.add("duplicated", int(lines[kept[first_row]]))
                held[first_row], kept[first_row] = label, row
                continue
            agree = label is None or theirs is None or fold_label(label) == fold_label(theirs)
            problems.add("duplicated" if agree else "contradictory duplicated", int(lines[row]))
        first = np.array([kept.get(row, row) for row in first.tolist()])
    return np.sort(first)
