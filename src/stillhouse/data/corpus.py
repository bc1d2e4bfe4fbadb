"""Running text as blocks of tokens: cut once, on disk, memory-mapped afterwards.

A block holds tokens of one split's documents only, and is never in two splits. A masked language
model's blocks stand between two special tokens. A language model's are a stream of documents, each
with its end-of-text token; a block begins with the token before it, so each is predicted once.

Axes: N blocks, T tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stillhouse.core.config import CorpusConfig
from stillhouse.core.errors import DataError
from stillhouse.core.progress import Advance
from stillhouse.core.rundir import atomic_folder
from stillhouse.core.types import Example
from stillhouse.data.cutting import BlockWriter, Rules
from stillhouse.data.documents import (
    PURPOSE,
    Document,
    documents,
    file_digest,
    text_files,
    tokenised,
)
from stillhouse.data.encoding import Encoded, tokenizer_fingerprint
from stillhouse.data.occurrences import FEWEST as FEWEST_WORDS
from stillhouse.data.occurrences import Occurrences
from stillhouse.data.sources import Pool, shared

FORMAT = 2  # of what is stored: blocks of another one are cut anew
COUNTED = 8192  # blocks counted together
FEWEST = 2  # blocks a split needs


class Blocks:
    """Blocks of one split, each with its leading and trailing special token. `lengths` counts
    each block's tokens; `keys_N2` stand for its ids; `special` are the ids that are no text."""

    def __init__(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        length: int,
        kept: np.ndarray | None = None,
    ) -> None:
        self._encoded = Encoded(folder, tokenizer, max_length=length)
        self._kept = np.arange(len(self._encoded)) if kept is None else kept
        self.lengths: np.ndarray = self._encoded.lengths[self._kept]
        self.keys_N2: np.ndarray = np.load(folder / "keys.npy")[self._kept]
        self.special = special_ids(tokenizer)
        self._vocabulary = max(tokenizer.get_vocab().values()) + 1

    def __len__(self) -> int:
        return len(self.lengths)

    def inputs(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The blocks at `rows` as a model takes them, padded on the right: see Encoded.inputs."""
        return self._encoded.inputs(self._kept[rows])

    def counts(self) -> np.ndarray:
        """How often each id of the vocabulary occurs in these blocks, special ones too."""
        return self._counts

    @cached_property
    def _counts(self) -> np.ndarray:
        ids, offsets = np.asarray(self._encoded.ids), self._encoded.offsets
        total = np.zeros(self._vocabulary, np.int64)
        for start in range(0, len(self), COUNTED):
            rows = self._kept[start : start + COUNTED]
            found = [ids[a:b] for a, b in zip(offsets[rows], offsets[rows + 1], strict=True)]
            total += np.bincount(np.concatenate(found), minlength=len(total))
        total.setflags(write=False)
        return total


@dataclass(frozen=True)
class Corpus:
    """train: blocks to learn from. held_out: those that select. reported: read once, at the end.
    `fingerprint` stands for every split's blocks, `lines_N2` of a split are the folded keys of the
    lines they were cut from."""

    train: Blocks
    held_out: Blocks
    reported: Blocks
    notes: list[str]
    fingerprint: str
    lines_N2: dict[str, np.ndarray]


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that stand for no text: the tokenizer's special tokens, the unknown one among them."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(tokenizer.all_special_ids) | {i for i, token in added if token.special}


def corpus_bytes(config: CorpusConfig) -> int:
    """Size of the corpus's files: what `load_corpus`'s progress adds up to. Raises DataError."""
    return sum(path.stat().st_size for path in text_files(config).values())


def load_corpus(
    config: CorpusConfig,
    tokenizer: PreTrainedTokenizerBase,
    store: Path,
    *,
    max_length: int,
    progress: Advance = lambda size: None,
    apart: Collection[bytes] = frozenset(),
    sought: Pool | None = None,
    causal: bool = False,
) -> Corpus:
    """The corpus in blocks of `config.length` tokens (`max_length` if that is less), from `store`
    if they were cut before. `progress` hears how many more bytes of text were read.

    A folder with train.txt, valid.txt and test.txt reports on test and selects on valid; with one
    of these two it reports on that, and selects on a share of the training lines; a single file is
    split by content. `config.rows` training blocks are those with the smallest content keys:
    a random draw that depends on nothing but content. Lines whose folded keys are in `apart` (rows
    that a run reports or selects on) are in no block. `sought`: rows that are looked for inside the
    training lines; a note says how many occur. `causal`: for a language model. Raises DataError.
    """
    files, length = text_files(config), min(config.length, max_length)
    rules = Rules.of(tokenizer, length=length, packed=config.packed, causal=causal)
    given = {"reported": config.reported, "held_out": config.held_out}
    shares = {split: share for split, share in given.items() if split not in files}
    digests = {split: file_digest(path) for split, path in files.items()}
    identity = repr(
        (FORMAT, digests, shares, length, config.packed, sorted(apart), *(["causal"] * causal),
         *([sought.fingerprint] if sought else []))
    ).encode()  # fmt: skip
    content = hashlib.blake2b(identity, digest_size=16).hexdigest()
    folder = store / f"{content}-{tokenizer_fingerprint(tokenizer)}"
    if (folder / "summary.json").exists():
        progress(corpus_bytes(config))
    else:
        with atomic_folder(folder, "tokens") as temporary:
            _write(temporary, files, shares, tokenizer, rules, progress, apart, sought or ())
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    notes = [f"{config.path}: {note}" for note in summary["notes"]]
    stored = {split: Blocks(folder / split, tokenizer, length=length) for split in PURPOSE}
    kept, repeated = _apart({split: blocks.keys_N2 for split, blocks in stored.items()})
    if repeated:
        notes.append(f"{config.path}: blocks left out, in another split too: {repeated}")
    _check(config, {split: len(rows) for split, rows in kept.items()}, shares, length)
    if config.rows is not None:
        order = np.lexsort(stored["train"].keys_N2[kept["train"]].T)
        kept["train"] = np.sort(kept["train"][order[: config.rows]])
    found = {
        split: Blocks(folder / split, tokenizer, length=length, kept=rows)
        for split, rows in kept.items()
    }
    digest = hashlib.blake2b(digest_size=12)
    for blocks in found.values():
        digest.update(len(blocks).to_bytes(8, "little") + blocks.keys_N2.tobytes())
    lines_N2 = {
        split: np.fromfile(folder / f"{split}-lines.bin", "<u8").reshape(-1, 2) for split in PURPOSE
    }
    return Corpus(**found, notes=notes, fingerprint=digest.hexdigest(), lines_N2=lines_N2)


def _apart(keys: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int]:
    """The blocks of each split that no split before it has too, and how many others there are:
    different lines can come to the same ids."""
    kept: dict[str, np.ndarray] = {}
    before_N2 = np.empty((0, 2), "<u8")
    for split, keys_N2 in keys.items():
        kept[split] = np.flatnonzero(~shared(keys_N2, before_N2))
        before_N2 = np.concatenate([before_N2, keys_N2])
    return kept, len(before_N2) - sum(map(len, kept.values()))


def _check(
    config: CorpusConfig, blocks: dict[str, int], shares: dict[str, float], length: int
) -> None:
    for split in ("reported", "train", "held_out"):  # nothing to train on: nothing to hold out
        count = blocks[split]
        if count >= FEWEST or shares.get(split) == 0:
            continue
        larger = f", or a larger share of it ({split})" if split in shares else ""
        raise DataError(
            f"{config.path}: blocks of {length} tokens to {PURPOSE[split]}: {count}; at least "
            f"{FEWEST} are needed: give more text, shorter blocks (its length){larger}"
        )


def _write(
    folder: Path,
    files: dict[str, Path],
    shares: dict[str, float],
    tokenizer: PreTrainedTokenizerBase,
    rules: Rules,
    progress: Advance,
    apart: Collection[bytes],
    sought: Iterable[Example],
) -> None:
    """Cuts the blocks of every split into `folder`; its summary comes last."""
    left_out: Counter[str] = Counter()
    with ExitStack() as stack:
        writers = {split: BlockWriter(folder / split, rules, stack) for split in PURPOSE}
        found = documents(files, shares, left_out, progress, apart)
        occurrences = Occurrences(sought)
        read = _reading(found, folder, occurrences, stack)
        for split, ids_T in tokenised(read, tokenizer):
            writers[split].add(ids_T)
        for split, writer in writers.items():
            writer.close()
            for kind, count in writer.dropped.items():
                left_out[f"pieces {kind} left out of {split}"] += count
    notes = [f"{kind}: {count}" for kind, count in left_out.items()]
    if count := occurrences.count():
        notes.append(
            f"{count} of {occurrences.sought} test rows looked for (of {FEWEST_WORDS} words or "
            "more) occur inside its training lines: the score may flatter"
        )
    (folder / "summary.json").write_text(json.dumps({"notes": notes}), encoding="utf-8")


def _reading(
    found: Iterable[Document], folder: Path, occurrences: Occurrences, stack: ExitStack
) -> Iterator[tuple[str, str]]:
    """(split, text) of the documents, whose keys go to `folder`; the training ones are looked
    through."""
    keys = {s: stack.enter_context((folder / f"{s}-lines.bin").open("wb")) for s in PURPOSE}
    for document in found:
        keys[document.split].write(document.key)
        if document.split == "train":
            occurrences.read(document.folded)
        yield document.split, document.text
