"""A run's data: which rows train, which select, which are reported; no content in two of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stillhouse.core.config import DataConfig
from stillhouse.core.errors import DataError
from stillhouse.core.progress import Progress
from stillhouse.core.types import Example
from stillhouse.data.columns import Columns
from stillhouse.data.readers import READERS, find_splits, hub_rows, read
from stillhouse.data.rows import FORMAT, Rows, ingest

FEW_ROWS = 100


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
        """Keys that are the same for texts which differ in case or white space only."""
        keys = [np.asarray(part.rows.folded[part.indices]) for part in self.parts]
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
    """`part` without the rows whose content is in one of `others`."""
    keep = ~shared(Pool([part]).folded_N2, Pool(others).folded_N2)
    return Part(part.rows, part.indices[keep], part.labelled)


def shared(mine_N2: np.ndarray, theirs_N2: np.ndarray) -> np.ndarray:
    """Which of my folded keys are also among theirs."""
    pairs = np.dtype([("a", "<u8"), ("b", "<u8")])
    mine, theirs = (np.ascontiguousarray(k).view(pairs).reshape(-1) for k in (mine_N2, theirs_N2))
    return np.isin(mine, theirs)


def _file_fingerprint(path: Path, *settings: object) -> str:
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _open(
    path: Path, columns: Columns, store: Path, progress: Progress | None, *, labelled: bool
) -> Rows:
    fingerprint = _file_fingerprint(path, columns, labelled, path.suffix, FORMAT)
    return ingest(
        read(path), str(path), columns, store / fingerprint, labelled=labelled, progress=progress
    )


def _open_hub(
    name: str, split: str, columns: Columns, store: Path, progress: Progress | None
) -> Rows | None:
    import datasets

    path, _, config = name.partition(":")
    try:
        names = datasets.get_dataset_split_names(path, config or None)
        source = hub_rows(name, split) if split in names else None
    except Exception as error:
        raise DataError(
            f"{name} is neither a file nor a folder here, and the hub gave no such data set "
            f"({type(error).__name__}): check the path"
        ) from error
    if source is None:
        return None
    fingerprint, rows = source
    identity = f"{name}\x1f{split}\x1f{columns}\x1f{fingerprint}\x1f{FORMAT}"
    key = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
    where = f"{name}[{split}]"
    return ingest(rows, where, columns, store / key, labelled=True, progress=progress)


def _files(
    config: DataConfig, columns: Columns, store: Path, progress: Progress | None
) -> dict[str, Rows]:
    path = Path(config.path)
    if path.is_dir():
        paths = find_splits(path)
    elif path.is_file():
        paths = {"train": path}
    elif path.suffix in READERS or path.is_absolute() or config.path.startswith("."):
        raise DataError(f"there is no file or folder {path}")
    else:
        names = {"train": "train", "dev": "validation", "test": "test"}
        opened = {k: _open_hub(config.path, v, columns, store, progress) for k, v in names.items()}
        if opened["dev"] is not None:
            opened["test"] = None  # hub test splits often hide their labels
        return {split: rows for split, rows in opened.items() if rows is not None}
    if config.dev:
        if not Path(config.dev).is_file():
            raise DataError(f"there is no file {config.dev} (data.dev)")
        paths.pop("test", None)
        paths["dev"] = Path(config.dev)
    return {s: _open(p, columns, store, progress, labelled=True) for s, p in paths.items()}


def _whole(rows: Rows, *, labelled: bool = True) -> Part:
    return Part(rows, rows.kept, labelled)


def _with_labels(part: Part) -> tuple[Part, Part]:
    """The rows of `part` that have a label, and those that don't."""
    has = part.rows.labels[part.indices] != None  # noqa: E711  (elementwise)
    without = Part(part.rows, part.indices[~has], labelled=False)
    return Part(part.rows, part.indices[has], labelled=True), without


def load(
    config: DataConfig, store: Path, *, texts: bool = False, progress: Progress | None = None
) -> Splits:
    """The splits of `config`'s data. Rows are stored under `store` and found again next time.
    `texts`: labels are answers to be written.

    A folder with train, dev and test reports on test and selects on dev; with train and dev it
    reports on dev and selects on a part of train; a single file is split by content.
    Raises DataError.
    """
    columns = Columns(config.text, config.pair, config.label, config.group, texts)
    files = _files(config, columns, store, progress)
    if "train" not in files:
        raise DataError(f"{config.path} has no train split")
    train, without = _with_labels(_whole(files["train"]))
    reported_rows = files.get("test") or files.get("dev")
    if reported_rows is not None:
        reported, _ = _with_labels(_whole(reported_rows))
    else:
        reported, train = _share(train, config.dev_share, "reported")
    before = len(train) + len(without)
    train, without = _outside(train, reported), _outside(without, reported)
    spare: list[Part] = [without]
    if config.labelled_rows is not None:
        train, hidden = _cut(train, config.labelled_rows, "labelled")
        spare.append(Part(hidden.rows, hidden.indices, labelled=False))
    leaked = before - len(train) - sum(map(len, spare))
    if "test" in files and "dev" in files:
        held_out = _outside(_with_labels(_whole(files["dev"]))[0], reported)
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
        spare.append(_outside(part, train, *spare))
    return _check(config, train, spare, held_out, reported, leaked, sources)


def open_unlabelled(
    config: DataConfig, store: Path, *, texts: bool = False, progress: Progress | None = None
) -> Rows:
    """The rows of `config.unlabelled`, without labels. Raises DataError."""
    path = Path(config.unlabelled or "")
    if not path.is_file():
        raise DataError(f"there is no file {path} (unlabelled rows)")
    is_text = path.suffix.lower() == ".txt"
    if is_text:
        columns = Columns(texts=texts)
    else:
        columns = Columns(config.text, config.pair, None, config.group, texts)
    return _open(path, columns, store, progress, labelled=False)


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
            f"{config.path}: of {total} usable rows {len(reported)} are to report on; "
            "at least 2 are needed: give more rows, or --set data.dev_share=0.5"
        )
    if len(train) < 2:
        raise DataError(f"{config.path}: {len(train)} labelled rows to train on; need at least 2")
    if len({rows.table["pair"].null_count == 0 for rows in sources}) > 1:
        raise DataError(
            f"{config.path}: some of its files have a second text and some have not: "
            "say which column it is with --pair-column, or leave the others out"
        )
    dropped: dict[str, int] = {}
    for rows in sources:
        for kind, count in rows.dropped.items():
            dropped[kind] = dropped.get(kind, 0) + count
    notes = [note for rows in sources for note in rows.notes]
    if blank := len(spare[0]):
        notes.append(
            f"{config.path}: {blank} rows without a label, which only a teacher can answer"
        )
    if len(reported) < FEW_ROWS:
        notes.append(f"{len(reported)} rows to report on are few: the intervals will be wide")
    if leaked:
        dropped["also reported or held out"] = leaked
        notes.append(f"{leaked} training rows left out: the same text is reported or held out")
    pools = (Pool([train]), Pool(spare), Pool([held_out]), Pool([reported]))
    return Splits(*pools, dropped=dropped, notes=notes)
