"""The files of a run's data, read: rows of each split that has its own."""

from __future__ import annotations

import hashlib
from pathlib import Path

from stillhouse.core.config import DataConfig
from stillhouse.core.errors import DataError
from stillhouse.core.progress import Progress
from stillhouse.data.columns import Columns
from stillhouse.data.places import place_of
from stillhouse.data.readers import READERS, find_splits, hub_rows, read
from stillhouse.data.rows import FORMAT, Rows, ingest


def _file_fingerprint(path: Path, *settings: object) -> str:
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _open(
    path: Path, columns: Columns, store: Path, progress: Progress | None, *, labelled: bool
) -> Rows:
    place = place_of(path)
    fingerprint = _file_fingerprint(path, columns, labelled, path.suffix, place.unit, FORMAT)
    return ingest(
        read(path), place.name, columns, store / fingerprint, labelled=labelled, unit=place.unit,
        progress=progress,
    )  # fmt: skip


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
    return ingest(rows, where, columns, store / key, labelled=True, unit="row", progress=progress)


def open_files(
    config: DataConfig, columns: Columns, store: Path, progress: Progress | None
) -> dict[str, Rows]:
    """The rows of each split (train, dev, test) that has its own file. Raises DataError."""
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
