"""What a teacher writes, kept by content: decoded once, used by every student, whatever its
tokenizer is; and which of it is fit to learn from.

A store's folder describes itself (store.json). texts.jsonl has a line per source: a checksum, the
content key, its texts, best first. Lines are appended and on disk before the next batch is decoded:
a kill loses the batch under way. The next writer cuts off a torn end.

Axes: N sources; keys are N x 2.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from jaxtyping import Bool
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.errors import RunError
from stillhouse.core.progress import Advance
from stillhouse.core.rundir import write_json
from stillhouse.models.decode import decode_batches
from stillhouse.models.reader import Ids, Vocabulary
from stillhouse.models.search import Decoding
from stillhouse.numerics.sequences import repeats
from stillhouse.signals.keys import first_of_each

LINES = "texts.jsonl"


@dataclass(frozen=True)
class Decoded:
    """One text of a teacher: without special tokens, its ids (the teacher's, without start and end
    token), its log-probability in nats, and whether it ended."""

    text: str
    ids: tuple[int, ...]
    logp: float
    finished: bool


class DecodedStore:
    """One teacher's texts under one setting. `identity` is everything a text depends on."""

    def __init__(self, root: Path, identity: dict[str, object]) -> None:
        text = json.dumps(identity, sort_keys=True)
        name = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
        self.folder = root / "decoded" / name
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # texts, in clear
        if not (self.folder / "store.json").exists():
            write_json(self.folder / "store.json", {"schema": 1, **identity})
        self._path = self.folder / LINES
        self._load()

    @property
    def fingerprint(self) -> str:
        return self.folder.name

    def __len__(self) -> int:
        return len(self._places)

    def _load(self, *, writing: bool = False) -> None:
        """Where each key's line is. A writer cuts off a torn last line; a reader looks past it: it
        may just be being written. Raises RunError for a whole line that is damaged."""
        self._places: dict[str, int] = {}
        whole = 0
        if self._path.exists():
            with self._path.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._places.setdefault(self._parsed(line)["key"], whole)
                    whole += len(line)
            if writing:
                with self._path.open("r+b") as file:
                    file.truncate(whole)

    def _parsed(self, line: bytes) -> dict[str, Any]:
        checksum, _, body = line.rstrip(b"\n").partition(b" ")
        if checksum != b"%08x" % zlib.crc32(body):
            raise RunError(
                f"{self._path} is damaged (a checksum differs): delete {self.folder} "
                "and run again, its texts will be decoded anew"
            )
        return json.loads(body)

    def missing(self, keys_N2: np.ndarray) -> Bool[np.ndarray, " N"]:
        """Which keys have no texts."""
        return np.array([_name(key) not in self._places for key in keys_N2], bool)

    def read(self, key_2: np.ndarray) -> list[Decoded]:
        """The key's texts, best first. Raises RunError where there are none."""
        place = self._places.get(_name(key_2))
        if place is None:
            raise RunError(f"{self.folder} lacks a source's texts: decode them first")
        with self._path.open("rb") as file:
            file.seek(place)
            texts = self._parsed(file.readline())["texts"]
        return [Decoded(text, tuple(ids), logp, ended) for text, ids, logp, ended in texts]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """For `append`. One writer at a time: a second one waits for the first."""
        with FileLock(self.folder / "lock"):
            self._load(writing=True)
            yield

    def append(self, keys_N2: np.ndarray, texts: Sequence[Sequence[Decoded]]) -> None:
        """Adds each key's texts, within `writing`; they are on disk after this. Of a key that is
        there the first texts stay. Raises RunError if the disk is full (what was whole stays)."""
        lines = []
        for key, each in zip(keys_N2, texts, strict=True):
            kept = [[t.text, [int(i) for i in t.ids], t.logp, t.finished] for t in each]
            body = json.dumps({"key": _name(key), "texts": kept}, ensure_ascii=False).encode()
            lines.append(b"%08x %s\n" % (zlib.crc32(body), body))
        try:
            with self._path.open("ab") as file:
                place = file.tell()
                file.write(b"".join(lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(
                f"can't write texts to {self._path}: {error.strerror}; those before are kept, "
                "run again to go on"
            ) from error
        for key, line in zip(keys_N2, lines, strict=True):
            self._places.setdefault(_name(key), place)
            place += len(line)


def _name(key_2: np.ndarray) -> str:
    return np.ascontiguousarray(key_2, "<u8").tobytes().hex()


def decode_missing(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    store: DecodedStore,
    keys_N2: np.ndarray,
    sources: Sequence[Ids],
    config: Decoding,
    words: Vocabulary,
    *,
    rng: np.random.Generator | None = None,
    progress: Advance = lambda sources: None,
) -> int:
    """Decodes the sources whose texts the store lacks, each content once; how many those were.

    `tokenizer` is the teacher's: it turns ids into text, special tokens left out. A source's texts
    do not depend on those decoded beside it, so neither do they on when a run was cut off, up to
    rounding. (Drawn ones do: `rng` is asked once per source that is lacking.)
    """
    with store.writing():
        wanted = first_of_each(keys_N2, store.missing(keys_N2))
        progress(len(keys_N2) - len(wanted))
        given = [sources[row] for row in wanted]
        for part, found in decode_batches(model, given, config, words, rng=rng):
            rows, texts = wanted[part], []
            for hypotheses in found:
                ids: Any = [each.ids for each in hypotheses]
                written: Any = tokenizer.batch_decode(ids, skip_special_tokens=True)
                texts.append(
                    [
                        Decoded(text.strip(), tuple(h.ids.tolist()), h.logp, h.finished)
                        for text, h in zip(written, hypotheses, strict=True)
                    ]
                )
            store.append(keys_N2[rows], texts)
            progress(len(rows))
    return len(wanted)


def filtered(
    texts: Sequence[Decoded | None],
    sources: Sequence[str],
    *,
    lengths: tuple[float, float] | None = (0.4, 2.5),
) -> tuple[Bool[np.ndarray, " N"], dict[str, int]]:
    """Which texts are fit to learn from, and how many are not, by the first reason that holds.

    missing: there is none; empty: nothing but white space; unfinished: cut off at the length limit;
    looping: its words run in circles (`numerics.sequences.repeats`; of a text without spaces, its
    tokens) and its source's do not; short, long: its characters, without white space, per one of
    its source's are less or more than `lengths` times the corpus's (that of all texts that passed
    the other tests together), so that a language pair's own ratio does not matter.
    """
    reasons = [_unfit(text, source) for text, source in zip(texts, sources, strict=True)]
    if lengths is not None:
        left = [row for row, reason in enumerate(reasons) if reason is None]
        sizes_N2 = np.array([_sizes(texts[row], sources[row]) for row in left]).reshape(-1, 2)
        usual = sizes_N2[:, 0].sum() / max(1, sizes_N2[:, 1].sum())
        for row, (mine, theirs) in zip(left, sizes_N2, strict=True):
            relative = mine / max(1, theirs) / usual
            if not lengths[0] <= relative <= lengths[1]:
                reasons[row] = "short" if relative < lengths[0] else "long"
    counts = Counter(reason for reason in reasons if reason is not None)
    return np.array([reason is None for reason in reasons], bool), dict(counts)


def _unfit(text: Decoded | None, source: str) -> str | None:
    if text is None:
        return "missing"
    if not text.text.strip():
        return "empty"
    if not text.finished:
        return "unfinished"
    words = text.text.split()
    looping = repeats(words if len(words) > 1 else text.ids) and not repeats(source.split())
    return "looping" if looping else None


def _sizes(text: Decoded | None, source: str) -> tuple[int, int]:
    assert text is not None, "it has passed"
    return len("".join(text.text.split())), len("".join(source.split()))
