"""A run's data: which rows train, which select, which are reported; no content in two of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stillhouse.core.config import DataConfig
from stillhouse.core.errors import DataError
from stillhouse.core.progress import Progress, Silent
from stillhouse.core.rundir import write_json
from stillhouse.core.types import Example
from stillhouse.core.units import counted
from stillhouse.data.columns import Columns
from stillhouse.data.labels import LabelRule, agree_labels
from stillhouse.data.near_duplicates import FORMAT as NEAR_FORMAT
from stillhouse.data.near_duplicates import LENGTH, SIMILAR, near_duplicates
from stillhouse.data.opening import open_files, open_unlabelled
from stillhouse.data.places import spoken
from stillhouse.data.rows import CHUNK, Rows

FEW_ROWS = 100
COMPARED = 10_000  # test rows that are compared with the training rows, at most


@dataclass(frozen=True)
class Part:
    """Some rows of a file; without `labelled`, their labels are not to be seen."""

    rows: Rows
    indices: np.ndarray
    labelled: bool

    def __len__(self) -> int:
        return len(self.indices)


class Pool:
    """Rows of one or more files behind one another, known by position and by content key."""

    def __init__(self, parts: Iterable[Part]) -> None:
        self.parts = [part for part in parts if len(part)]
        keys = [np.asarray(part.rows.keys[part.indices]) for part in self.parts]
        self.keys_N2 = np.concatenate(keys) if keys else np.empty((0, 2), "<u8")

    def __len__(self) -> int:
        return len(self.keys_N2)

    def __iter__(self) -> Iterator[Example]:
        for part in self.parts:
            yield from part.rows.examples(part.indices)

    @property
    def folded_N2(self) -> np.ndarray:
        """Keys that are the same for rows nobody tells apart: see rows.folded_key."""
        keys = [np.asarray(part.rows.folded[part.indices]) for part in self.parts]
        return np.concatenate(keys) if keys else np.empty((0, 2), "<u8")

    @property
    def ordered_N2(self) -> np.ndarray:
        """Folded keys that tell a pair from the same pair turned round."""
        keys = [np.asarray(part.rows.ordered[part.indices]) for part in self.parts]
        return np.concatenate(keys) if keys else np.empty((0, 2), "<u8")

    @property
    def fingerprint(self) -> str:
        """Stands for the content and its order, not for the labels."""
        return hashlib.blake2b(self.keys_N2.tobytes(), digest_size=12).hexdigest()

    @property
    def labels(self) -> np.ndarray:
        """Label of each row as text (object array), None where it has none or it is hidden."""
        shown = [
            part.rows.labels[part.indices] if part.labelled else np.full(len(part), None, object)
            for part in self.parts
        ]
        return np.concatenate(shown) if shown else np.empty(0, object)

    @property
    def groups(self) -> np.ndarray:
        """Group of each row (object array), None where it has none."""
        found = [part.rows.groups[part.indices] for part in self.parts]
        return np.concatenate(found) if found else np.empty(0, object)

    def place(self, position: int) -> str:
        """File and line of the row at a position, to be named."""
        for part in self.parts:
            if position < len(part):
                return part.rows.place(int(part.indices[position]))
            position -= len(part)
        raise IndexError(position)

    @property
    def lines(self) -> np.ndarray:
        """Where each row stands in its file: its line, or its number where there are no lines."""
        found = [np.asarray(part.rows.lines[part.indices]) for part in self.parts]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def at(self, positions: np.ndarray) -> list[Example]:
        """The rows at `positions`, in that order."""
        starts = np.cumsum([0, *map(len, self.parts)])
        found: dict[int, Example] = {}
        for start, part in zip(starts, self.parts, strict=False):
            inside = positions[(positions >= start) & (positions < start + len(part))]
            examples = part.rows.examples(part.indices[inside - start])
            found.update(zip(inside.tolist(), examples, strict=True))
        return [found[int(position)] for position in positions]


@dataclass(frozen=True)
class Splits:
    """labelled: gold rows to train on. unlabelled: rows only a teacher can answer.
    held_out: gold rows that select. reported: gold rows read once, at the end."""

    labelled: Pool
    unlabelled: Pool
    held_out: Pool
    reported: Pool
    dropped: dict[str, int]
    notes: list[str]

    @property
    def train(self) -> Pool:
        return Pool([*self.labelled.parts, *self.unlabelled.parts])

    @property
    def fingerprint(self) -> str:
        """Stands for every split's texts and labels."""
        digest = hashlib.blake2b(digest_size=12)
        for pool in (self.labelled, self.unlabelled, self.held_out, self.reported):
            digest.update(pool.fingerprint.encode() + repr(pool.labels.tolist()).encode())
        return digest.hexdigest()


def _mix(keys_N2: np.ndarray, purpose: str) -> np.ndarray:
    """A number a row, uniform over 64 bits, from its content and the purpose."""
    salt = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")
    with np.errstate(over="ignore"):
        mixed = (keys_N2[:, 0] ^ np.uint64(salt)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(29)) ^ keys_N2[:, 1]) * np.uint64(0xBF58476D1CE4E5B9)
        return mixed ^ (mixed >> np.uint64(32))


def _order(keys_N2: np.ndarray, purpose: str) -> np.ndarray:
    """Positions in an order that depends on content only, another one for each purpose."""
    return np.argsort(_mix(keys_N2, purpose), kind="stable")


def _share(part: Part, share: float, purpose: str) -> tuple[Part, Part]:
    """About `share` of the rows of `part`, and the rest. Whether a row is chosen depends on its
    own content alone: it stays where it is when the file grows, or another file holds it too."""
    chosen = _mix(Pool([part]).folded_N2, purpose) < share * 2.0**64
    return (
        Part(part.rows, part.indices[chosen], part.labelled),
        Part(part.rows, part.indices[~chosen], part.labelled),
    )


def _cut(part: Part, count: int, purpose: str) -> tuple[Part, Part]:
    """`count` rows of `part` chosen by content, and the rest; both in file order."""
    order = _order(Pool([part]).folded_N2, purpose)
    chosen, rest = np.sort(order[:count]), np.sort(order[count:])
    return (
        Part(part.rows, part.indices[chosen], part.labelled),
        Part(part.rows, part.indices[rest], part.labelled),
    )


def _outside(part: Part, *others: Part) -> Part:
    """`part` without the rows whose folded content is in one of `others`."""
    keep = ~shared(Pool([part]).folded_N2, Pool(others).folded_N2)
    return Part(part.rows, part.indices[keep], part.labelled)


def _new(part: Part, *others: Part) -> Part:
    """`part` without the rows that `others` have too. A pair turned round is another question."""
    keep = ~shared(Pool([part]).ordered_N2, Pool(others).ordered_N2)
    return Part(part.rows, part.indices[keep], part.labelled)


def shared(mine_N2: np.ndarray, theirs_N2: np.ndarray) -> np.ndarray:
    """Which of my folded keys are also among theirs."""
    pairs = np.dtype([("a", "<u8"), ("b", "<u8")])
    mine, theirs = (np.ascontiguousarray(k).view(pairs).reshape(-1) for k in (mine_N2, theirs_N2))
    return np.isin(mine, theirs)


def _whole(rows: Rows, *, labelled: bool = True) -> Part:
    return Part(rows, rows.kept, labelled)


def _with_labels(part: Part) -> tuple[Part, Part]:
    """The rows of `part` that have a label, and those that don't."""
    has = part.rows.labels[part.indices] != None  # noqa: E711  (elementwise)
    without = Part(part.rows, part.indices[~has], labelled=False)
    return Part(part.rows, part.indices[has], labelled=True), without


def load(
    config: DataConfig,
    store: Path,
    *,
    texts: bool = False,
    rule: LabelRule | None = None,
    progress: Progress | None = None,
) -> Splits:
    """The splits of `config`'s data. Rows are stored under `store` and found again next time.
    `texts`: labels are answers to be written. `rule`: what is known of labels that are not.

    A folder with train, dev and test reports on test and selects on dev; with train and dev it
    reports on dev and selects on a part of train; a single file is split by content.
    Raises DataError.
    """
    columns = Columns(config.text, config.pair, config.label, config.group, texts)
    files = open_files(config, columns, store, progress)
    if "train" not in files:
        raise DataError(f"{spoken(config.path)} has no train split")
    files, agreed = agree_labels(files, config, rule or LabelRule(values=texts))
    train, without = _with_labels(_whole(files["train"]))
    unlabelled: dict[str, int] = {}  # rows by what they were for
    reported_rows = files.get("test") or files.get("dev")
    if reported_rows is not None:
        reported, blank = _with_labels(_whole(reported_rows))
        unlabelled["to report on"] = len(blank)
    else:
        reported, train = _share(train, config.dev_share, "reported")
    before = len(train) + len(without)
    train, without = _outside(train, reported), _outside(without, reported)
    spare: list[Part] = [without]
    if config.labelled_rows is not None:
        train, hidden = _cut(train, config.labelled_rows, "labelled")
        spare.append(Part(hidden.rows, hidden.indices, labelled=False))
    leaked, lost = before - len(train) - sum(map(len, spare)), 0
    if "test" in files and "dev" in files:
        selecting, blank = _with_labels(_whole(files["dev"]))
        unlabelled["to select on"] = len(blank)
        held_out = _outside(selecting, reported)
        _check_selecting(config, len(selecting), len(held_out))
        lost = len(selecting) - len(held_out)
        kept = _outside(train, held_out)
        leaked += len(train) - len(kept)
        train, spare = kept, [_outside(part, held_out) for part in spare]
    else:
        count = min(round(len(train) * config.held_out), config.held_out_rows)
        held_out, rest = _cut(train, count, "held out")
        train = _outside(rest, held_out)
        leaked += len(rest) - len(train) + sum(map(len, spare))
        spare = [_outside(part, held_out) for part in spare]
        leaked -= sum(map(len, spare))
    sources = list(files.values())
    if config.unlabelled:
        extra = open_unlabelled(config, store, texts=texts, progress=progress)
        sources.append(extra)
        whole = _whole(extra, labelled=False)
        part = _outside(whole, reported, held_out)
        leaked += len(whole) - len(part)
        spare.append(_new(part, train, *spare))
    found = _check(config, train, spare, held_out, reported, leaked, sources)
    if lost:
        found.dropped["to select on, also reported"] = lost
        found.notes.append(
            f"{counted(lost, 'row')} to select on left out: the same text is reported"
        )
    for purpose, count in unlabelled.items():
        if count:
            found.dropped[f"{purpose}, without a label"] = count
            found.notes.append(f"{counted(count, 'row')} {purpose} left out: no label")
    found.notes.extend(agreed)
    found.notes.extend(_near_duplicates(found, store, progress or Silent()))
    return found


def _check_selecting(config: DataConfig, given: int, left: int) -> None:
    """Raises DataError where the rows to select on, which the user gave, come to none."""
    if left:
        return
    why = f"all {given} of them are in the test rows too" if given else "none has a label"
    raise DataError(
        f"{spoken(config.path)}: no row of dev is left to select on, as {why}: give other rows, or "
        "leave dev out, and some training rows select"
    )


def _near_duplicates(splits: Splits, store: Path, progress: Progress) -> list[str]:
    """A warning where test rows are almost training rows. Counted once for the same rows."""
    test, train = splits.reported, splits.train
    sample = np.sort(_order(test.keys_N2, "near-duplicates")[:COMPARED])
    identity = f"{NEAR_FORMAT} {len(sample)} {test.fingerprint} {train.fingerprint}".encode()
    name = hashlib.blake2b(identity, digest_size=16).hexdigest()
    path = store / "near-duplicates" / f"{name}.json"
    if not path.is_file():
        heard = progress if len(train) > CHUNK else Silent()
        with heard.stage("comparing test with training rows", len(train), "rows") as advance:
            write_json(path, near_duplicates(test.at(sample), train, advance))
    found = json.loads(path.read_text(encoding="utf-8"))
    if not found:
        return []
    return [
        f"about {round(found * len(test) / len(sample)):,} of {len(test):,} test rows are "
        f"near-duplicates of training rows (Jaccard of word {LENGTH}-grams >= {SIMILAR}, "
        "any number like another): "
        "the score may flatter"
    ]


def _check(
    config: DataConfig,
    train: Part,
    spare: list[Part],
    held_out: Part,
    reported: Part,
    leaked: int,
    sources: list[Rows],
) -> Splits:
    if len(reported) < 2:
        total = sum(map(len, (train, *spare, held_out, reported)))
        raise DataError(
            f"{spoken(config.path)}: of {total} usable rows {len(reported)} are to report on; "
            "at least 2 are needed: give more rows, or --set data.dev_share=0.5"
        )
    if len(train) < 2:
        raise DataError(
            f"{spoken(config.path)}: {len(train)} labelled rows to train on; need at least 2"
        )
    if len({rows.table["pair"].null_count == 0 for rows in sources}) > 1:
        raise DataError(
            f"{spoken(config.path)}: some of its files have a second text and some have not: "
            "say which column it is with --pair-column, or leave the others out"
        )
    dropped: dict[str, int] = {}
    for rows in sources:
        for kind, count in rows.dropped.items():
            dropped[kind] = dropped.get(kind, 0) + count
    notes = [note for rows in sources for note in rows.notes]
    if blank := len(spare[0]):
        notes.append(
            f"{spoken(config.path)}: {counted(blank, 'row')} without a label, which only a teacher "
            "can answer"
        )
    if len(reported) < FEW_ROWS:
        notes.append(f"{len(reported)} rows to report on are few: the intervals will be wide")
    if not len(held_out) and config.held_out and config.held_out_rows:
        notes.append(
            f"{len(train)} training rows are too few to hold one out: nothing selects, the last "
            "weights are kept"
        )
    if leaked:
        dropped["also reported or held out"] = leaked
        notes.append(f"{leaked} training rows left out: the same text is reported or held out")
    pools = (Pool([train]), Pool(spare), Pool([held_out]), Pool([reported]))
    return Splits(*pools, dropped=dropped, notes=notes)
