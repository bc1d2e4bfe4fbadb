"""The documents of a corpus: the lines of its text files, each in one split, as token ids.

A line is a document. Which split a line belongs to follows from its own folded content: the same
line, or one that nobody tells from it, is never in two of them. Lines next to each other
may well be: to keep whole articles apart, give train.txt, valid.txt and test.txt.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from stillhouse.core.config import CorpusConfig
from stillhouse.core.errors import DataError
from stillhouse.core.folding import folded
from stillhouse.core.progress import Advance
from stillhouse.core.seeding import derive
from stillhouse.data.readers import READERS, SPLITS, read
from stillhouse.data.rows import content_key

CHARACTERS = 1 << 20  # tokenised together; a longer line is tokenised in pieces of so many
REPORT = 1 << 20  # bytes read between two words about it
# What each split is for, in the order in which they are read.
PURPOSE = {"reported": "report on", "held_out": "select on", "train": "train on"}


def text_files(config: CorpusConfig) -> dict[str, Path]:
    """The text file of each split that has its own. Raises DataError."""
    path = Path(config.path)
    if path.is_file():
        if path.suffix.lower() in set(READERS) - {".txt"}:
            raise DataError(
                f"{path} is a table; a masked language model reads running text: give a .txt file"
            )
        if path.suffix.lower() != ".txt":
            raise DataError(f"{path} is no .txt file: rename it if there is plain text in it")
        return {"train": path}
    if not path.is_dir():
        raise DataError(f"there is no file or folder {path}: check the path of the text")
    found: dict[str, Path] = {}
    for split, names in SPLITS.items():
        present = [file for name in names if (file := path / f"{name}.txt").is_file()]
        if len(present) > 1:
            listed = ", ".join(file.name for file in present)
            raise DataError(f"{path} has several {split} files ({listed}): leave one of them")
        if present:
            found[split] = present[0]
    if "train" not in found:
        listing = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise DataError(f"{path} has no train.txt; it holds {listing}: give a folder with one")
    if not config.reported:  # nothing is reported on
        own = {"held_out": found["dev"]} if "dev" in found else {}
        return {**own, "train": found["train"]}
    if "test" in found and "dev" in found:
        return {"reported": found["test"], "held_out": found["dev"], "train": found["train"]}
    own = found.get("test") or found.get("dev")
    return {**({"reported": own} if own else {}), "train": found["train"]}


def file_digest(path: Path) -> str:
    """Stands for the bytes of a file. Raises DataError if it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}") from error


def _lines(path: Path, progress: Advance) -> Iterator[str]:
    """The lines of `path` that hold something, without the white space around it."""
    told, waiting, empty = 0, 0, True
    for line, row in read(path):
        try:
            waiting += len(row["text"].encode())
        except UnicodeEncodeError:
            raise DataError(f"{path} line {line} is not UTF-8: save the file as UTF-8") from None
        if text := row["text"].strip():
            empty = False
            yield text
        if waiting >= REPORT:
            progress(waiting)
            told, waiting = told + waiting, 0
    if empty:
        raise DataError(f"{path} has no text in it: give a file with a document on each line")
    progress(path.stat().st_size - told)


class Document(NamedTuple):
    """A line of a split. `key` stands for its folded text."""

    split: str
    text: str
    folded: str
    key: bytes


def documents(
    files: dict[str, Path],
    shares: dict[str, float],
    left_out: Counter[str],
    progress: Advance,
    apart: Collection[bytes] = (),
) -> Iterator[Document]:
    """Every line that is used. Lines of a split that has its own file are kept out of those that
    are read after it; shares are drawn from the training file. Lines whose folded keys are in
    `apart` are used nowhere."""
    taken: set[bytes] = set()
    for origin in (split for split in PURPOSE if split in files):
        own: set[bytes] = set()
        for text in _lines(files[origin], progress):
            plain = folded(text)
            key = content_key(plain, None)
            if key in apart:
                left_out[
                    f"lines of {files[origin].name} left out, rows to report or select on"
                ] += 1
                continue
            if key in taken:
                left_out[f"lines of {files[origin].name} left out, held out or reported too"] += 1
                continue
            if origin == "train":
                yield Document(_drawn(key, shares), text, plain, key)
            else:
                own.add(key)
                yield Document(origin, text, plain, key)
        taken |= own


def _drawn(key: bytes, shares: dict[str, float]) -> str:
    """The split of a line of the training file, by its content alone."""
    drawn = (s for s, share in shares.items() if derive(0, s, key.hex()) < share * 2.0**63)
    return next(drawn, "train")


def _pieces(documents: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, bool]]:
    """(split, piece, whether the document ends with it): a document that is too long to be
    tokenised at once is cut before a white space, or where there is none for long, anywhere."""
    for split, text in documents:
        while len(text) > CHARACTERS:
            at = max(text.rfind(" ", 1, CHARACTERS), 0) or CHARACTERS
            yield split, text[:at], False
            text = text[at:]
        yield split, text, True


def _batches(pieces: Iterable[tuple[str, str, bool]]) -> Iterator[list[tuple[str, str, bool]]]:
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[1])
        if size >= CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def tokenised(
    documents: Iterable[tuple[str, str]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[str, np.ndarray]]:
    """(split, ids) of each document, without special tokens; some megabytes of text at a time."""
    parts: list[np.ndarray] = []
    for batch in _batches(_pieces(documents)):
        coded: Any = tokenizer(
            [piece for _, piece, _ in batch],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        for (split, _, ends), ids in zip(batch, coded["input_ids"], strict=True):
            parts.append(np.array(ids, "<i4"))
            if ends:
                yield split, np.concatenate(parts)
                parts = []
