"""Token ids of a pool of rows: one flat file on disk, memory-mapped, padded batch by batch.

Axes: B examples, T tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stillhouse.core.rundir import atomic_folder
from stillhouse.core.types import Example
from stillhouse.data.padding import padded_arrays
from stillhouse.data.sources import Pool

CHUNK = 4096
FORMAT = 2  # of what is stored: tokens of another one are made anew
PROBE = ("Stillhouse: 1,234.5 naïve cafés — don't \U0001f943", "second part, ünïcode 中文")


class Encoded:
    """A pool's token ids. `lengths` counts each row's tokens; `seconds` where its second segment
    begins (its length where there is none); `cut` the rows that were too long."""

    def __init__(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, *, max_length: int
    ) -> None:
        self.offsets = np.load(folder / "offsets.npy")
        self.seconds = np.load(folder / "seconds.npy")
        self.lengths = np.diff(self.offsets)
        self.cut = int(np.load(folder / "cut.npy")) if (folder / "cut.npy").exists() else 0
        empty = not len(self.lengths)  # which can't be mapped
        self.ids = np.empty(0, "<i4") if empty else np.memmap(folder / "ids.bin", "<i4", mode="r")
        self.pad, self.max_length = pad_id(tokenizer), max_length
        self.names = set(tokenizer.model_input_names)

    def __len__(self) -> int:
        return len(self.lengths)

    def inputs(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The rows at `rows`, padded: see `padded`."""
        ends = zip(self.offsets[rows], self.offsets[rows + 1], strict=True)
        return padded(
            [self.ids[a:b] for a, b in ends], self.seconds[rows], pad=self.pad,
            types="token_type_ids" in self.names, max_length=self.max_length,
        )  # fmt: skip


def padded(
    ids: Sequence[np.ndarray], seconds: np.ndarray, *, pad: int, types: bool, max_length: int
) -> dict[str, Tensor]:
    """`padded_arrays` as tensors."""
    found = padded_arrays(ids, seconds, pad=pad, types=types, max_length=max_length)
    return {name: torch.from_numpy(array) for name, array in found.items()}


def encode_now(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> dict[str, Tensor]:
    """A few examples as a model's inputs, nothing kept of them. All have a pair, or none has."""
    ids, seconds = token_rows(examples, tokenizer, max_length=max_length)
    return padded(
        ids, np.array(seconds), pad=pad_id(tokenizer),
        types="token_type_ids" in tokenizer.model_input_names, max_length=max_length,
    )  # fmt: skip


def token_rows(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> tuple[list[np.ndarray], list[int]]:
    """Each example's token ids, and where its second segment begins. All have a pair, or none."""
    ids, types, _ = _tokens(examples, tokenizer, max_length)
    return [np.asarray(row) for row in ids], [_zeros(row) for row in types]


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills a row up; 0 where a tokenizer names none (it is masked anyway)."""
    return tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Stands for how a tokenizer encodes: its vocabulary and rules, the side it cuts, and what it
    makes of a probe text."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())  # pyright: ignore
    rules |= {"truncation": tokenizer.truncation_side, "padding": None}  # set by each call
    digest = hashlib.blake2b(json.dumps(rules).encode(), digest_size=12)
    for text in (PROBE, (PROBE[1], None)):
        digest.update(str(tokenizer(*text)["input_ids"]).encode())
    return digest.hexdigest()


def tokens_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """`tokenizer_fingerprint`, with what else decides how rows with answers are cut: which tokens
    begin, end and fill a text, and how conversations are shown."""
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    digest = hashlib.blake2b(tokenizer_fingerprint(tokenizer).encode(), digest_size=12)
    digest.update(repr((ends, tokenizer.chat_template)).encode())
    return digest.hexdigest()


def _chunks(pool: Pool) -> Iterator[list[Example]]:
    rows = iter(pool)
    while chunk := list(islice(rows, CHUNK)):
        yield chunk


def encode(
    pool: Pool,
    tokenizer: PreTrainedTokenizerBase,
    store: Path,
    *,
    max_length: int,
    progress: Callable[[int], None] = lambda rows: None,
) -> Encoded:
    """The pool's token ids, from disk if they were made before. Longest-first truncation."""
    name = f"{pool.fingerprint}-{tokenizer_fingerprint(tokenizer)}-{max_length}-{FORMAT}"
    folder = stored(_write, store / name, pool, tokenizer, max_length, progress)
    return Encoded(folder, tokenizer, max_length=max_length)


Write = Callable[[Pool, PreTrainedTokenizerBase, Path, int, Callable[[int], None]], None]


def stored(
    write: Write,
    folder: Path,
    pool: Pool,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    progress: Callable[[int], None],
) -> Path:
    """The folder of a pool's tokens, written now if it isn't there."""
    if (folder / "ids.bin").exists():
        progress(len(pool))
    else:
        with atomic_folder(folder, "tokens") as temporary:
            write(pool, tokenizer, temporary, max_length, progress)
    return folder


def _write(
    pool: Pool,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    max_length: int,
    progress: Callable[[int], None],
) -> None:
    lengths, seconds, cut = [np.zeros(1, np.int64)], [np.zeros(0, np.int32)], 0
    with (folder / "ids.bin").open("wb") as file:
        for chunk in _chunks(pool):
            ids, types, longer = _tokens(chunk, tokenizer, max_length)
            cut += longer
            file.write(np.fromiter((i for row in ids for i in row), dtype="<i4").tobytes())
            lengths.append(np.fromiter(map(len, ids), dtype=np.int64))
            seconds.append(np.fromiter((_zeros(row) for row in types), dtype=np.int32))
            progress(len(chunk))
    np.save(folder / "offsets.npy", np.cumsum(np.concatenate(lengths)))
    np.save(folder / "seconds.npy", np.concatenate(seconds))
    np.save(folder / "cut.npy", cut)


def _tokens(
    chunk: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[list[int]], list[list[int]], int]:
    """Ids and token types of examples, cut to so many tokens, and how many were longer."""
    pairs = [each.pair or "" for each in chunk] if chunk[0].pair is not None else None
    coded: Any = tokenizer(
        [each.text for each in chunk],
        pairs,
        truncation=True,
        max_length=max_length,
        return_token_type_ids=True,
        return_attention_mask=False,
    )
    ids = coded["input_ids"]
    if coded.encodings is None:  # a tokenizer in Python doesn't say; one that fits exactly counts
        longer = sum(len(row) >= max_length for row in ids)
    else:
        longer = sum(bool(each.overflowing) for each in coded.encodings)
    return ids, coded["token_type_ids"], longer


def _zeros(types: list[int]) -> int:
    """How many zeros come first."""
    return types.index(1) if 1 in types else len(types)
