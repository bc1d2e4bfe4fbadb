"""The text that queries are made of: its words, sentences and paragraphs, read once and kept.

Cleaned as Krishna et al. 2020 ("Thieves on Sesame Street") clean WikiText: headings go, a line is
cut into sentences at its lone full stops, and the signs that its tokenisation parted are joined.
Text that was not tokenised is cut after full stops, question and exclamation marks.

Axes: S sentences or paragraphs, W words of the vocabulary, T tokens of all of them.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stillhouse.core.errors import DataError
from stillhouse.core.progress import Advance, Progress
from stillhouse.core.rundir import atomic_folder
from stillhouse.data.documents import file_digest
from stillhouse.data.readers import hub_rows, read

FORMAT = 1  # of what is stored
SHORT_SENTENCE, SHORT_PARAGRAPH = 3, 20  # words; what has no more is left out
JOINED = (
    (" @.@ ", "."), (" @-@ ", "-"), (" @,@ ", ","), (" ,", ","), (" '", "'"), (" )", ")"),
    ("( ", "("), (" ;", ";"),
)  # fmt: skip
JOINED_IN_PARAGRAPHS = (*JOINED, (" .", "."), (" :", ":"))
NOT_UTF8 = re.compile("[\\ud800-\\udfff]")  # what reading keeps of bytes that are none
UNKNOWN = "<unk>"  # WikiText's own sign for a word that it lost
END = re.compile(r"(?<=[.!?])\s+(?=\S)")


@dataclass(frozen=True)
class Ragged:
    """Sentences or paragraphs as ids of words, behind one another."""

    ids_T: np.ndarray
    offsets_S: np.ndarray  # S + 1

    def __len__(self) -> int:
        return len(self.offsets_S) - 1

    @property
    def lengths_S(self) -> np.ndarray:
        return np.diff(self.offsets_S)

    def __getitem__(self, place: int) -> np.ndarray:
        return self.ids_T[self.offsets_S[place] : self.offsets_S[place + 1]]


@dataclass(frozen=True)
class QueryCorpus:
    """`words_W`: most frequent in sentences first; what WikiText lost is never one of them.
    `counts_2W`: how often each is in the sentences, and in the paragraphs."""

    name: str
    words_W: np.ndarray  # objects
    counts_2W: np.ndarray
    sentences: Ragged  # a word that is none has the id W
    paragraphs: Ragged
    fingerprint: str


def read_corpus(source: str | None, store: Path, progress: Progress) -> QueryCorpus:
    """The corpus in a text file, a folder of them, or a hub data set; None: the documentation
    strings of Python's own library. Kept under `store`. Raises DataError."""
    name, files, hub = _opened(source)
    if hub is not None:
        fingerprint, lines = hub
    elif source is None:
        fingerprint, lines = f"python {sys.version.split()[0]}", _docstrings(files)
    else:
        fingerprint = " ".join(file_digest(path) for path in files)
        lines = _lines(files)
    key = hashlib.blake2b(f"{FORMAT} {fingerprint}".encode(), digest_size=16).hexdigest()
    folder = store / "queries" / key
    if not (folder / "corpus.json").exists():
        with progress.stage(f"reading {name}", 0, "lines") as advance:
            texts, words = _counted(lines, advance)
        if not len(texts[0]):
            raise DataError(
                f"{name} has no sentence of over {SHORT_SENTENCE} words, which end at spaces: give "
                "more text in UTF-8, or queries of your own with --pool"
            )
        with atomic_folder(folder, "the corpus") as place:
            _store(texts, words, place)
    return _load(folder, name, key)


Hub = tuple[str, Iterator[str]]


def _opened(source: str | None) -> tuple[str, list[Path], Hub | None]:
    if source is None:
        library = Path(sysconfig.get_paths()["stdlib"])
        skipped = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3"}
        found = [p for p in library.rglob("*.py") if not skipped & {*p.relative_to(library).parts}]
        return "Python's documentation strings", sorted(found), None
    path = Path(source)
    if path.is_file():
        return path.name, [path], None
    if path.is_dir():
        train = path / "train.txt"
        files = [train] if train.is_file() else sorted(path.glob("*.txt"))
        if not files:
            raise DataError(f"{path} has no .txt file: give a file of text, or a folder of them")
        return path.name, files, None
    if path.is_absolute() or source.startswith(".") or path.suffix in (".txt", ".csv", ".jsonl"):
        raise DataError(f"there is no file or folder {path}: check the path of the corpus")
    try:
        fingerprint, rows = hub_rows(source, "train")
    except Exception as error:
        raise DataError(
            f"{source} is neither a file nor a folder here, and the hub gave no such data set "
            f"({type(error).__name__}): check the path of the corpus"
        ) from error
    return source, [], (fingerprint, (str(row.get("text") or "") for _, row in rows))


def _lines(files: Sequence[Path]) -> Iterator[str]:
    for path in files:
        for line, row in read(path):
            text = row.get("text")
            if text is None:
                raise DataError(
                    f"{path} line {line} has no text: give a .txt file, or a column text"
                )
            if NOT_UTF8.search(str(text)):
                continue  # a line that is not UTF-8 is no text
            yield str(text)


def _docstrings(files: Sequence[Path]) -> Iterator[str]:
    """Paragraphs of the documentation strings in these sources; nothing is imported or run."""
    for path in files:
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, OSError):
            continue
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, documented) else None
            for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text or "")):
                if ">>>" not in paragraph:
                    yield " ".join(paragraph.split())


def sentences(line: str) -> Iterator[str]:
    """The sentences of a line."""
    if " . " in line or line.endswith(" ."):
        parts = [f"{part} ." for part in line.removesuffix(" .").split(" . ")]
        yield from (joined(part, (*JOINED, (" .", "."))) for part in parts)
    else:
        yield from END.split(line)


def joined(text: str, signs: Iterable[tuple[str, str]]) -> str:
    """Text whose signs stand where a writer puts them."""
    for apart, together in signs:
        text = text.replace(apart, together)
    return text


def _counted(lines: Iterable[str], progress: Advance) -> tuple[list[list[list[int]]], list[str]]:
    """Sentences and paragraphs as ids of the words in the order they were met, and these."""
    places: dict[str, int] = {}
    found: list[list[list[int]]] = [[], []]

    def add(kind: int, text: str, short: int) -> None:
        words = text.split()
        if len(words) > short:
            found[kind].append([places.setdefault(word, len(places)) for word in words])

    for number, raw in enumerate(lines, 1):
        line = " ".join(raw.split())
        if line and not line.startswith("="):
            for sentence in sentences(line):
                add(0, sentence, SHORT_SENTENCE)
            add(1, joined(line, JOINED_IN_PARAGRAPHS), SHORT_PARAGRAPH)
        if number % 10_000 == 0:
            progress(10_000)
    return found, list(places)


def _store(texts: list[list[list[int]]], words: list[str], place: Path) -> None:
    """Ids by falling count in sentences; ties as the words are spelt."""
    whole = len(words)
    flat = [np.fromiter((i for text in part for i in text), np.int32) for part in texts]
    counts = np.stack([np.bincount(ids, minlength=whole) for ids in flat])
    lost = np.array([UNKNOWN in word for word in words], bool)
    order = np.lexsort((np.array(words, object).astype(str), -counts[1], -counts[0]))
    order = order[~lost[order]]
    new = np.full(whole, len(order), np.int32)
    new[order] = np.arange(len(order), dtype=np.int32)
    for name, part, ids in zip(("sentences", "paragraphs"), texts, flat, strict=True):
        np.save(place / f"{name}.npy", new[ids])
        ends = np.cumsum([0, *map(len, part)])
        np.save(place / f"{name}-offsets.npy", ends.astype(np.int64))
    np.save(place / "counts.npy", counts[:, order])
    listed = [words[i] for i in order]
    (place / "corpus.json").write_text(json.dumps(listed, ensure_ascii=False), encoding="utf-8")


def _load(folder: Path, name: str, key: str) -> QueryCorpus:
    def ragged(kind: str) -> Ragged:
        return Ragged(
            np.load(folder / f"{kind}.npy", mmap_mode="r"), np.load(folder / f"{kind}-offsets.npy")
        )

    words = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    return QueryCorpus(
        name, np.array(words, object), np.load(folder / "counts.npy"),
        ragged("sentences"), ragged("paragraphs"), key,
    )  # fmt: skip
