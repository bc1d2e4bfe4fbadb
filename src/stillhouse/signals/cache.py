"""A teacher's answers on disk, kept by content: asked once, used by every seed, epoch and run.

A cache folder describes itself (cache.json). Its shards are fixed-size records (content key,
scores, checksum), appended and read by memory map. A record counts once it is whole: after a kill
the torn end is cut off, nothing else is lost. A full shard is sealed with a digest of all of it.

Axes: N rows, K choices.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from stillhouse.core.errors import RunError
from stillhouse.core.rundir import write_json
from stillhouse.core.types import Batch, Dense
from stillhouse.signals.keys import Keys

SHARD = 65_536  # records


class AnswerCache:
    """One teacher's answers under one setting. `identity` is everything an answer depends on."""

    def __init__(self, root: Path, identity: dict[str, object]) -> None:
        text = json.dumps(identity, sort_keys=True)
        name = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
        self.folder = root / "answers" / name
        self.identity = identity
        self.choices: list[str] = list(identity["choices"])  # pyright: ignore
        self.record = np.dtype(
            [("key", "<u8", (2,)), ("scores", "<f4", (len(self.choices),)), ("crc", "<u4")]
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "cache.json").exists():
            write_json(self.folder / "cache.json", {"schema": 1, "kind": "dense", **identity})
        self._load()

    @property
    def fingerprint(self) -> str:
        return self.folder.name

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.bin"

    def _load(self, *, writing: bool = False) -> None:
        """Maps the shards' whole records, and checks them.

        A writer cuts off a torn end. A reader looks past it: it may just be being written.
        """
        self._maps: list[np.ndarray] = []
        shard = 0
        while (path := self._path(shard)).exists():
            if (seal := path.with_suffix(".json")).exists():
                self._check_seal(path, json.loads(seal.read_text(encoding="utf-8")))
                whole = SHARD
            else:
                whole = self._whole_records(path)
                if writing:
                    self._mend(path, whole)
            if whole:
                self._maps.append(np.memmap(path, dtype=self.record, mode="r", shape=(whole,)))
            if whole < SHARD:
                if writing and self._path(shard + 1).exists():
                    raise self._damage(path, "it is cut short")
                break
            shard += 1
        keys = [np.asarray(records["key"]) for records in self._maps]
        self._keys = Keys(np.concatenate(keys) if keys else np.empty((0, 2), "<u8"))

    def _whole_records(self, path: Path) -> int:
        """How many records stand before the first that is torn or damaged."""
        records = np.fromfile(path, self.record, path.stat().st_size // self.record.itemsize)
        return next((i for i, r in enumerate(records) if r["crc"] != _crc(r)), len(records))

    def _mend(self, path: Path, whole: int) -> None:
        """What a killed writer left: cuts off its torn end, seals a shard it had just filled."""
        size = whole * self.record.itemsize
        if size != path.stat().st_size and not self._path(len(self._maps) + 1).exists():
            with path.open("r+b") as file:
                file.truncate(size)
        if whole == SHARD:
            _seal(path)

    def _check_seal(self, path: Path, seal: dict[str, object]) -> None:
        found = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        if found != seal["blake2b"]:
            raise self._damage(path, "its checksum differs")

    def _damage(self, path: Path, how: str) -> RunError:
        return RunError(
            f"{path} is damaged ({how}): delete {self.folder} "
            "and run again, its answers will be asked for anew"
        )

    def __len__(self) -> int:
        return len(self._keys)

    def positions(self, keys_N2: np.ndarray) -> np.ndarray:
        """Where each key's answer lies, -1 for one that is not there."""
        return self._keys.positions(keys_N2)

    def scores(self, positions: np.ndarray) -> np.ndarray:
        """The answers at `positions`, float32, N x K."""
        out = np.empty((len(positions), len(self.choices)), np.float32)
        shards = positions // SHARD
        for shard in np.unique(shards):
            inside = shards == shard
            out[inside] = self._maps[shard]["scores"][positions[inside] % SHARD]
        return out

    @contextmanager
    def writing(self) -> Iterator[AnswerWriter]:
        """Appends answers. One writer at a time: a second one waits for the first."""
        with FileLock(self.folder / "lock"):
            self._load(writing=True)
            writer = AnswerWriter(self)
            try:
                yield writer
            finally:
                writer.close()
                self._load()

    def pending(self, keys_N2: np.ndarray) -> np.ndarray:
        """Positions in `keys_N2` that had no answer when this request was first made."""
        return np.flatnonzero(self._keys.pending(keys_N2, self.folder))


def _crc(record: np.void) -> int:
    return zlib.crc32(record.tobytes()[:-4])


def _seal(path: Path) -> None:
    digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    write_json(path.with_suffix(".json"), {"records": SHARD, "blake2b": digest})


class AnswerWriter:
    """Appends whole records to the last shard, and seals it when it is full."""

    def __init__(self, cache: AnswerCache) -> None:
        self._cache = cache
        self._written = len(cache)
        self._file: int | None = None

    def append(self, keys_N2: np.ndarray, scores: np.ndarray | Sequence[np.ndarray]) -> None:
        """Scores row by row. Raises RunError if one is not finite, or the disk is full (what was
        whole stays)."""
        scores_NK = np.asarray(scores, np.float32)
        if not np.isfinite(scores_NK).all():
            bad = int((~np.isfinite(scores_NK)).any(-1).sum())
            raise RunError(
                f"the teacher's answers are not finite in {bad} of {len(scores_NK)} rows: "
                "check its weights, or use --set label.precision=float32"
            )
        records = np.zeros(len(keys_N2), dtype=self._cache.record)
        records["key"], records["scores"] = keys_N2, scores_NK
        for i in range(len(records)):
            records["crc"][i] = _crc(records[i])
        while len(records):
            room = SHARD - self._written % SHARD
            self._write(records[:room].tobytes())
            self._written += min(room, len(records))
            records = records[room:]
            if self._written % SHARD == 0:
                self.close()
                _seal(self._cache._path(self._written // SHARD - 1))

    def _write(self, data: bytes) -> None:
        path = self._cache._path(self._written // SHARD)
        try:
            if self._file is None:
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as error:
            raise RunError(
                f"can't write answers to {path}: {error.strerror}; those before are kept, "
                "run again to go on"
            ) from error

    def close(self) -> None:
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None


class CachedTeacher:
    """A source that answers from a cache. Every row must be in it."""

    kind = Dense

    def __init__(self, cache: AnswerCache, keys_N2: np.ndarray) -> None:
        self._cache = cache
        self._positions = cache.positions(keys_N2)
        self.fingerprint = cache.fingerprint
        missing = int((self._positions < 0).sum())
        if missing:
            raise RunError(f"the cache lacks {missing} of {len(keys_N2)} answers: label them first")

    def signal(self, batch: Batch) -> Dense:
        scores_NK = torch.from_numpy(self._cache.scores(self._positions[batch.rows]))
        for tensor in batch.inputs.values():
            return Dense(scores_NK.to(tensor.device))
        return Dense(scores_NK)
