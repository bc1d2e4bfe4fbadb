"""Questions on passages as token ids: a long passage in windows that overlap.

A window is the question (its first 64 tokens) and as much of the passage as fits; the next shares
128 tokens of the passage with it (less where windows are short), as is usual. Each
token knows its place in the passage, so that an answer is a piece of the text itself.

Axes: W windows, T tokens of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from stillhouse.core.errors import DataError
from stillhouse.core.types import Example
from stillhouse.data.encoding import Encoded, stored, tokenizer_fingerprint
from stillhouse.data.sources import Pool

CHUNK = 1024
QUESTION, SHARED = 64, 128  # tokens, and at most a quarter and a third of a window
SHORTEST = 16  # tokens of a window


class Windows(Encoded):
    """Windows of a pool's rows, in their order. `owners_W`: the row of each; `chars_T2`: where in
    the passage each token begins and ends, (0, 0) for one that is not of the passage."""

    def __init__(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, *, max_length: int
    ) -> None:
        super().__init__(folder, tokenizer, max_length=max_length)
        self.owners_W = np.load(folder / "owners.npy")
        self.chars_T2 = np.load(folder / "chars.npy", mmap_mode="r")

    def chars(self, window: int) -> np.ndarray:
        """Of one window's tokens: where each begins and ends, length x 2."""
        return self.chars_T2[self.offsets[window] : self.offsets[window + 1]]


def windows(
    pool: Pool,
    tokenizer: PreTrainedTokenizerBase,
    store: Path,
    *,
    max_length: int,
    progress: Callable[[int], None] = lambda rows: None,
) -> Windows:
    """The pool's windows, from disk if they were made before. A row's text is the question, its
    pair the passage. Raises DataError for rows without one, or windows that are too short."""
    if max_length < SHORTEST:
        raise DataError(
            f"a window of {max_length} tokens has no room for question and passage: set "
            "data.max_length to 384"
        )
    name = f"{pool.fingerprint}-{tokenizer_fingerprint(tokenizer)}-{max_length}-windows"
    folder = stored(_write, store / name, pool, tokenizer, max_length, progress)
    return Windows(folder, tokenizer, max_length=max_length)


def _write(
    pool: Pool,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    max_length: int,
    progress: Callable[[int], None],
) -> None:
    lengths, seconds, owners = [0], [], []
    chars = [np.zeros((0, 2), np.int32)]
    with (folder / "ids.bin").open("wb") as file:
        for start in range(0, len(pool), CHUNK):
            examples = pool.at(np.arange(start, min(start + CHUNK, len(pool))))
            for each in cut(examples, tokenizer, max_length=max_length):
                file.write(each.ids_T.astype("<i4").tobytes())
                lengths.append(len(each.ids_T))
                seconds.append(each.second)
                owners.append(start + each.owner)
                chars.append(each.chars_T2)
            progress(len(examples))
    np.save(folder / "offsets.npy", np.cumsum(lengths))
    np.save(folder / "seconds.npy", np.array(seconds, np.int32))
    np.save(folder / "owners.npy", np.array(owners, np.int64))
    np.save(folder / "chars.npy", np.concatenate(chars).astype(np.int32))


@dataclass(frozen=True)
class Window:
    """One window: which example's, its tokens, where its second segment begins, and where in the
    passage each token stands, (0, 0) for one that is not of the passage."""

    owner: int
    ids_T: np.ndarray
    second: int
    chars_T2: np.ndarray


def cut(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> Iterator[Window]:
    """The windows of some examples, in their order. Raises DataError for one without passage."""
    if any(each.pair is None for each in examples):
        raise DataError(
            "a question has no passage: say which columns hold them with --text-column (the "
            "question) and --pair-column (the passage)"
        )
    coded: Any = tokenizer(
        _cut([each.text for each in examples], tokenizer, min(QUESTION, max_length // 4)),
        [each.pair or "" for each in examples],
        truncation="only_second",
        max_length=max_length,
        stride=min(SHARED, max_length // 3),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=True,
    )
    for each, owner in zip(coded.encodings, coded["overflow_to_sample_mapping"], strict=True):
        inside_T = np.array([part == 1 for part in each.sequence_ids])
        types_T = np.array(each.type_ids)
        second = int(np.argmax(types_T == 1)) if (types_T == 1).any() else len(types_T)
        chars_T2 = np.where(inside_T[:, None], np.array(each.offsets, np.int32), 0)
        yield Window(owner, np.array(each.ids), second, chars_T2)


def _cut(questions: list[str], tokenizer: PreTrainedTokenizerBase, longest: int) -> list[str]:
    """Questions of at most so many tokens that every window has room for the passage."""
    coded: Any = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True)
    ends = [spans[:longest][-1][1] if spans else 0 for spans in coded["offset_mapping"]]
    return [question[:end] for question, end in zip(questions, ends, strict=True)]
