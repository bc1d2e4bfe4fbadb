"""What caches of long answers share: records of any length, found by the content of their row.

A folder describes itself in a JSON file. A record, some bytes for each of its tokens, is appended
to the data; index.bin has an entry of fixed size for each, appended after the record is on the
disk. A record counts once its entry is whole: after a kill the next writer cuts off what is torn,
and nothing else is lost. A record's checksum is compared when a process first reads it: opening
stays quick, and nothing is used unchecked.

Axes: N rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock

from stillhouse.core.errors import RunError
from stillhouse.core.rundir import write_json
from stillhouse.signals.keys import Keys, first_of_each

ENTRY = np.dtype(
    [("key", "<u8", (2,)), ("offset", "<u8"), ("tokens", "<u4"), ("crc", "<u4"), ("check", "<u4")]
)
SPARE = 10**9  # bytes that stay free on the disk


class Records:
    """A folder of records; abstract: a cache says what it keeps (`kind`, as "states") and in which
    form, how many bytes that is for a token, and makes and reads the records."""

    def __init__(
        self,
        root: Path,
        kind: str,
        form: dict[str, object],
        identity: dict[str, object],
        *,
        token_bytes: int,
    ) -> None:
        about = {"schema": 1, "kind": kind, **form, "identity": identity}
        text = json.dumps(about, sort_keys=True)
        name = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
        self.kind, self.token_bytes, self.folder = kind, token_bytes, root / kind / name
        self.data_path, self.index_path = self.folder / f"{kind}.bin", self.folder / "index.bin"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / f"{kind}.json").exists():
            write_json(self.folder / f"{kind}.json", about)
        self._load()

    @property
    def fingerprint(self) -> str:
        return self.folder.name

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def end(self) -> int:
        """Bytes of all whole records."""
        return self._end_of(self._entries[-1:]).item() if len(self) else 0

    def _end_of(self, entries: np.ndarray) -> np.ndarray:
        return entries["offset"] + entries["tokens"].astype("<u8") * np.uint64(self.token_bytes)

    def _load(self, *, writing: bool = False) -> None:
        """Reads the index, and maps the records. A writer cuts off what is torn; a reader looks
        past it: it may just be being written."""
        entries = self._whole_entries()
        size = self.data_path.stat().st_size if self.data_path.exists() else 0
        self._entries = entries[: np.searchsorted(self._end_of(entries), size, side="right")]
        if writing:
            _cut(self.index_path, self._entries.nbytes)
            _cut(self.data_path, self.end)
        empty = not self.end  # which can't be mapped
        self._data = (
            np.empty(0, np.uint8)
            if empty
            else np.asarray(np.memmap(self.data_path, np.uint8, mode="r", shape=(self.end,)))
        )
        self._checked = np.zeros(len(self), bool)
        self._keys = Keys(self._entries["key"])

    def _whole_entries(self) -> np.ndarray:
        """The entries before a torn end. Raises RunError if one before whole ones is damaged."""
        if not self.index_path.exists():
            return np.empty(0, ENTRY)
        count = self.index_path.stat().st_size // ENTRY.itemsize
        entries = np.fromfile(self.index_path, ENTRY, count)
        right = _checks(entries) == entries["check"]
        begins = np.concatenate([np.zeros(1, "<u8"), self._end_of(entries)[:-1]])[: len(entries)]
        good = right & (entries["offset"] == begins)
        whole = len(good) if good.all() else int(good.argmin())
        if right[whole:].any():
            raise self._damage(self.index_path, f"entry {whole + 1} of {count} differs")
        return entries[:whole]

    def _damage(self, path: Path, how: str) -> RunError:
        return RunError(
            f"{path} is damaged ({how}): delete {self.folder} "
            f"and run again, the teacher's {self.kind} will be read anew"
        )

    def positions(self, keys_N2: np.ndarray) -> np.ndarray:
        """Where each key's record is, -1 for one that is not there."""
        return self._keys.positions(keys_N2)

    def positions_of_all(self, keys_N2: np.ndarray) -> np.ndarray:
        """Where each key's record is. Raises RunError if one is not there."""
        found = self.positions(keys_N2)
        missing = int((found < 0).sum())
        if missing:
            raise RunError(
                f"the cache lacks the {self.kind} of {missing} of {len(keys_N2)} rows: "
                "keep them first"
            )
        return found

    def missing(self, keys_N2: np.ndarray) -> np.ndarray:
        """Positions in `keys_N2` without a record, the first of each content."""
        return first_of_each(keys_N2, self.positions(keys_N2) < 0)

    def pending(self, keys_N2: np.ndarray) -> np.ndarray:
        """Those that were missing when this request was first made."""
        return first_of_each(keys_N2, self._keys.pending(keys_N2, self.folder))

    def tokens(self, positions: np.ndarray) -> np.ndarray:
        """How many tokens each record holds."""
        return self._entries["tokens"][positions].astype(np.int64)

    def record_at(self, position: int) -> np.ndarray:
        """The bytes of a record. Raises RunError if it is damaged."""
        entry = self._entries[position]
        start = int(entry["offset"])
        record = self._data[start : start + int(entry["tokens"]) * self.token_bytes]
        if not self._checked[position]:
            if zlib.crc32(record.data) != entry["crc"]:
                raise self._damage(self.data_path, f"the checksum of row {position + 1} differs")
            self._checked[position] = True
        return record

    def require_free(self, needed: int, *, otherwise: str) -> None:
        """Raises RunError, one line, if the disk has less than `needed` bytes and 1 GB free."""
        free = shutil.disk_usage(self.folder).free
        if needed and free < needed + SPARE:
            raise RunError(
                f"{self.kind} would take {needed / 1e9:.1f} GB, and there are {free / 1e9:.1f} GB "
                f"free at {self.folder.parent} (1 GB is left free): use --set {otherwise}"
            )

    @contextmanager
    def writing(self) -> Iterator[RecordsWriter]:
        """Appends records. One writer at a time: a second one waits for the first."""
        with FileLock(self.folder / "lock"):
            self._load(writing=True)
            writer = RecordsWriter(self)
            try:
                yield writer
            finally:
                writer.close()
                self._load()


class RecordsWriter:
    """Appends records, and their entries once the records are on the disk."""

    def __init__(self, cache: Records) -> None:
        self._cache, self._end = cache, cache.end
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._files = [os.open(p, flags, 0o644) for p in (cache.data_path, cache.index_path)]

    def append(self, keys_N2: np.ndarray, records: list[bytes]) -> None:
        """Raises RunError if the disk is full (what was whole stays)."""
        entries = np.zeros(len(records), ENTRY)
        sizes = np.array([len(record) for record in records], "<u8")
        entries["key"], entries["tokens"] = keys_N2, sizes // np.uint64(self._cache.token_bytes)
        entries["offset"] = np.uint64(self._end) + np.cumsum(sizes) - sizes
        entries["crc"] = [zlib.crc32(record) for record in records]
        entries["check"] = _checks(entries)
        data, index = self._files
        try:
            _write(data, b"".join(records))
            os.fsync(data)
            _write(index, entries.tobytes())
        except OSError as error:
            raise RunError(
                f"can't write {self._cache.kind} to {self._cache.folder}: {error.strerror}; those "
                "before are kept, run again to go on"
            ) from error
        self._end += int(sizes.sum())

    def close(self) -> None:
        for file in self._files:
            os.fsync(file)
            os.close(file)


def _checks(entries: np.ndarray) -> np.ndarray:
    """The checksum of each entry."""
    size, view = ENTRY.itemsize, memoryview(entries.tobytes())
    held = size - ENTRY["check"].itemsize
    return np.array([zlib.crc32(view[i : i + held]) for i in range(0, len(view), size)], "<u4")


def _cut(path: Path, size: int) -> None:
    if path.exists() and path.stat().st_size > size:
        with path.open("r+b") as file:
            file.truncate(size)


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
