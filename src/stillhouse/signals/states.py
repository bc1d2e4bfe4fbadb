"""A teacher's hidden states on disk, kept by content: read once, used by every seed and epoch.

A cache folder describes itself (states.json). A record in states.bin holds one row: its real
tokens' states, layer by layer. index.bin has an entry of fixed size for each record, appended
after the record is on the disk. A record counts once its entry is whole: after a kill the next
writer cuts off what is torn, and nothing else is lost. A record's checksum is compared when a
process first reads it: opening stays quick, and no state is used unchecked.

Axes: N rows, L kept layers, B examples, T tokens, S tokens of all examples, H hidden.
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
from typing import Literal

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float
from torch import Tensor

from stillhouse.core.errors import RunError
from stillhouse.core.rundir import write_json
from stillhouse.core.types import States, Tap
from stillhouse.numerics.quantise import COMPUTED, DECODE, ENCODE
from stillhouse.signals.keys import Keys, first_of_each

ENTRY = np.dtype(
    [("key", "<u8", (2,)), ("offset", "<u8"), ("tokens", "<u4"), ("crc", "<u4"), ("check", "<u4")]
)
SPARE = 10**9  # bytes that stay free on the disk

StatesType = Literal["bf16", "int8"]


class StatesCache:
    """One teacher's hidden states of `layers` under one setting; with `pooled`, of each row's
    first token only. `identity` is everything the states depend on, the tokens included."""

    def __init__(
        self,
        root: Path,
        identity: dict[str, object],
        *,
        layers: tuple[int, ...],
        width: int,
        pooled: bool,
        dtype: StatesType,
    ) -> None:
        if not layers or sorted(set(layers)) != list(layers) or layers[0] < 0:
            raise ValueError(f"layers must rise from 0 or more, got {layers}")
        form = {"layers": list(layers), "width": width, "pooled": pooled, "dtype": dtype}
        about = {"schema": 1, "kind": "states", **form, "identity": identity}
        text = json.dumps(about, sort_keys=True)
        name = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
        self.folder = root / "states" / name
        self.layers, self.width, self.pooled, self.dtype = layers, width, pooled, dtype
        planes = {"bf16": (("<i2", width),), "int8": (("<f4", 1), ("|i1", width))}
        self._planes = [(np.dtype(kind), wide) for kind, wide in planes[dtype]]
        self.token_bytes = len(layers) * sum(kind.itemsize * wide for kind, wide in self._planes)
        self.data_path, self.index_path = self.folder / "states.bin", self.folder / "index.bin"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "states.json").exists():
            write_json(self.folder / "states.json", about)
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
            "and run again, the teacher's states will be read anew"
        )

    def positions(self, keys_N2: np.ndarray) -> np.ndarray:
        """Where each key's record is, -1 for one that is not there."""
        return self._keys.positions(keys_N2)

    def missing(self, keys_N2: np.ndarray) -> np.ndarray:
        """Positions in `keys_N2` without a record, the first of each content."""
        return first_of_each(keys_N2, self.positions(keys_N2) < 0)

    def pending(self, keys_N2: np.ndarray) -> np.ndarray:
        """Those that were missing when this request was first made."""
        return first_of_each(keys_N2, self._keys.pending(keys_N2, self.folder))

    def tokens(self, positions: np.ndarray) -> np.ndarray:
        """How many tokens each record holds."""
        return self._entries["tokens"][positions].astype(np.int64)

    def bytes_needed(self, lengths: np.ndarray) -> int:
        """What rows of so many tokens will take on the disk: give those that are `missing`."""
        tokens = len(lengths) if self.pooled else int(np.sum(lengths, dtype=np.int64))
        return tokens * self.token_bytes + len(lengths) * ENTRY.itemsize

    def require_room(self, needed: int) -> None:
        """Raises RunError, one line, if the disk has less than `needed` bytes and 1 GB free."""
        free = shutil.disk_usage(self.folder).free
        if needed and free < needed + SPARE:
            smaller = "int8, or live" if self.dtype == "bf16" else "live"
            raise RunError(
                f"states would take {needed / 1e9:.1f} GB, and there are {free / 1e9:.1f} GB free "
                f"at {self.folder.parent} (1 GB is left free): use --set label.states={smaller}"
            )

    def records(self, states: States) -> list[bytes]:
        """What is kept of each example. Raises RunError if a value is not finite."""
        found = [states[Tap("hidden", layer)] for layer in self.layers]
        mask_BT = states.mask_BT
        x_LSH = torch.stack([x[:, 0] if self.pooled else x[mask_BT] for x in found])
        assert x_LSH.shape[-1] == self.width, (x_LSH.shape, self.width)
        x_LSH = x_LSH.to(COMPUTED[self.dtype])
        if not torch.isfinite(x_LSH).all():
            bad = int((~torch.isfinite(x_LSH)).any(-1).any(0).sum())
            raise RunError(
                f"the teacher's states are not finite in {bad} of {x_LSH.shape[1]} tokens: "
                "check its weights, or use --set label.precision=float32"
            )
        planes = [plane.cpu().numpy() for plane in ENCODE[self.dtype](x_LSH)]
        lengths = torch.ones(len(mask_BT)) if self.pooled else mask_BT.sum(-1).cpu()
        ends = lengths.long().cumsum(0).tolist()
        spans = zip([0, *ends[:-1]], ends, strict=True)
        return [b"".join(plane[:, a:b].tobytes() for plane in planes) for a, b in spans]

    @contextmanager
    def writing(self) -> Iterator[StatesWriter]:
        """Appends records. One writer at a time: a second one waits for the first."""
        with FileLock(self.folder / "lock"):
            self._load(writing=True)
            writer = StatesWriter(self)
            try:
                yield writer
            finally:
                writer.close()
                self._load()

    def read(
        self, positions: np.ndarray, tokens: int, device: torch.device
    ) -> Float[Tensor, "L B T H"]:
        """The records at `positions`, with zeros up to `tokens`: bfloat16, or float32 if kept in
        int8. Raises RunError if one is damaged."""
        layers = len(self.layers)
        planes = [
            np.zeros((layers, len(positions), tokens, wide), kind) for kind, wide in self._planes
        ]
        for row, position in enumerate(positions.tolist()):
            record, start = self._record(position), 0
            length = int(self._entries["tokens"][position])
            for plane, (kind, wide) in zip(planes, self._planes, strict=True):
                stop = start + layers * length * wide * kind.itemsize
                held = record[start:stop].view(kind).reshape(layers, length, wide)
                plane[:, row, :length] = held
                start = stop
        return DECODE[self.dtype](*(torch.from_numpy(plane).to(device) for plane in planes))

    def _record(self, position: int) -> np.ndarray:
        entry = self._entries[position]
        start = int(entry["offset"])
        record = self._data[start : start + int(entry["tokens"]) * self.token_bytes]
        if not self._checked[position]:
            if zlib.crc32(record.data) != entry["crc"]:
                raise self._damage(self.data_path, f"the checksum of row {position + 1} differs")
            self._checked[position] = True
        return record


def _checks(entries: np.ndarray) -> np.ndarray:
    """The checksum of each entry."""
    size, view = ENTRY.itemsize, memoryview(entries.tobytes())
    held = size - ENTRY["check"].itemsize
    return np.array([zlib.crc32(view[i : i + held]) for i in range(0, len(view), size)], "<u4")


def _cut(path: Path, size: int) -> None:
    if path.exists() and path.stat().st_size > size:
        with path.open("r+b") as file:
            file.truncate(size)


class StatesWriter:
    """Appends records, and their entries once the records are on the disk."""

    def __init__(self, cache: StatesCache) -> None:
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
                f"can't write states to {self._cache.folder}: {error.strerror}; those before are "
                "kept, run again to go on"
            ) from error
        self._end += int(sizes.sum())

    def close(self) -> None:
        for file in self._files:
            os.fsync(file)
            os.close(file)


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
