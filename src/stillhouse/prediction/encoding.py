"""Rows as a model's inputs, by the tokenizer's own library alone.

Axes: B examples, W windows, T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from stillhouse.core.errors import ModelError
from stillhouse.core.inference import Inference
from stillhouse.data.batching import sorted_batches
from stillhouse.data.padding import padded_arrays

QUESTION, SHARED = 64, 128  # tokens, and at most a quarter and a third of a window
MAX_TOKENS = 16_384  # padded, of one pass


@dataclass(frozen=True)
class Piece:
    """What is given to the model of one row: all of it, or one window of its passage. chars_T2:
    where in the passage each token stands, (0, 0) for one that is not of it."""

    owner: int
    ids_T: np.ndarray
    second: int
    cut: bool = False
    chars_T2: np.ndarray | None = None


@dataclass(frozen=True)
class Pass:
    """One run of the model: which pieces, their inputs, and where a span may be."""

    pieces: list[int]
    inputs: dict[str, np.ndarray]
    answerable_BT: np.ndarray | None


def tokenizer_in(folder: Path) -> tuple[Tokenizer, str]:
    """A folder's tokenizer, and the side it cuts. Raises ModelError."""
    path = folder / "tokenizer.json"
    try:
        made = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        why = "there is no tokenizer.json beside it" if not path.exists() else str(error)
        raise ModelError(
            f"{folder}: {why}: export the model again, or copy its tokenizer's files there"
        ) from None
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        settings = {}
    return made, settings.get("truncation_side", "right")


class Encoder:
    """Texts into pieces, pieces into passes."""

    def __init__(self, tokenizer: Tokenizer, facts: Inference, *, side: str = "right") -> None:
        self._facts = facts
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._plain = Tokenizer.from_str(self._tokenizer.to_str())
        self._plain.no_truncation()
        length = facts.max_length
        if facts.task == "span":
            self._tokenizer.enable_truncation(
                length, stride=min(SHARED, length // 3), strategy="only_second", direction=side
            )
        else:
            self._tokenizer.enable_truncation(length, strategy="longest_first", direction=side)

    def pieces(self, texts: Sequence[str], pairs: Sequence[str | None]) -> list[Piece]:
        """The pieces of some rows, in their order."""
        if self._facts.task == "span":
            return list(self._windows(texts, [pair or "" for pair in pairs]))
        rows: list[Any] = [
            text if pair is None else (text, pair) for text, pair in zip(texts, pairs, strict=True)
        ]
        found = self._tokenizer.encode_batch(rows)
        return [
            Piece(i, np.array(each.ids), _zeros(each.type_ids), cut=bool(each.overflowing))
            for i, each in enumerate(found)
        ]

    def _windows(self, questions: Sequence[str], passages: Sequence[str]) -> Iterator[Piece]:
        longest = min(QUESTION, self._facts.max_length // 4)
        coded = self._plain.encode_batch(list(questions), add_special_tokens=False)
        ends = [each.offsets[:longest][-1][1] if each.offsets else 0 for each in coded]
        asked = [question[:end] for question, end in zip(questions, ends, strict=True)]
        rows: Any = list(zip(asked, passages, strict=True))
        for owner, whole in enumerate(self._tokenizer.encode_batch(rows)):
            for each in (whole, *whole.overflowing):
                inside_T = np.array([part == 1 for part in each.sequence_ids])
                chars_T2 = np.where(inside_T[:, None], np.array(each.offsets), 0)
                second = _zeros(each.type_ids)
                yield Piece(owner, np.array(each.ids), second, chars_T2=chars_T2)

    def passes(self, pieces: Sequence[Piece], *, size: int) -> Iterator[Pass]:
        """Pieces of similar length together, at most `size` of them."""
        lengths = np.array([len(piece.ids_T) for piece in pieces])
        for batch in sorted_batches(lengths, size=size, max_tokens=MAX_TOKENS):
            rows = batch.tolist()
            few = [pieces[row] for row in rows]
            inputs = padded_arrays(
                [piece.ids_T for piece in few],
                np.array([piece.second for piece in few]),
                pad=self._facts.pad_id,
                types="token_type_ids" in self._facts.inputs,
                max_length=self._facts.max_length,
            )
            yield Pass(rows, inputs, _answerable(few, inputs["input_ids"].shape))


def _answerable(pieces: Sequence[Piece], shape: tuple[int, ...]) -> np.ndarray | None:
    if pieces[0].chars_T2 is None:
        return None
    found_BT = np.zeros(shape, bool)
    for i, piece in enumerate(pieces):
        assert piece.chars_T2 is not None
        found_BT[i, : len(piece.chars_T2)] = piece.chars_T2[:, 1] > 0
    return found_BT


def _zeros(types: list[int]) -> int:
    """How many zeros come first."""
    return types.index(1) if 1 in types else len(types)
